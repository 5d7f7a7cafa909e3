from PIL import Image

from patchsae_lib.explorer import Strips, explorer_link


def test_words_beside_pictures_are_never_markup() -> None:
    picture = Image.new("RGB", (8, 8), (200, 10, 10))
    rows = [("<b>x", "<script>", [picture], ['"><img src=x>'])]
    html = Strips(rows)._repr_html_()
    assert "<script>" not in html
    assert html.count("<img") == 1
    assert "&lt;script&gt;" in html
    assert 'src="data:image/webp;base64,' in html


def test_a_latent_that_is_named_leads_to_the_explorer() -> None:
    picture = Image.new("RGB", (8, 8))
    rows = [("best: latent 12", "latent 7 (wing), latents 3", [picture], ["x"])]
    html = Strips(rows)._repr_html_()
    assert 'latent <a href="../explorer.html#latent=12&amp;view=latent">12</a>' in html
    assert html.count("<a ") == 2
    assert 'alt="x, lit where latent 12 is active" title="x"' in html
    link = explorer_link("<i>", task="a b&c", label=2)
    assert link == '<a href="../explorer.html#task=a%20b%26c&amp;class=2">&lt;i&gt;</a>'
