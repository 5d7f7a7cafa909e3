import re

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


def test_pictures_stand_below_the_name_of_their_group() -> None:
    pictures = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(4)]
    words = ["CLIP: rose", "CLIP: <iris>", "MaPLe: rose", "MaPLe: <iris>"]
    html = Strips([("x", "y", pictures, words)])._repr_html_()
    names = re.findall(r"<small[^>]*>(.*?)</small>", html)
    assert names == ["CLIP", "MaPLe"]
    first, second = (part.count("<img") for part in html.split("<small")[1:])
    assert (first, second) == (2, 2)
    assert "<iris>" not in html
    assert "<small" not in Strips([("x", "y", pictures[:2], words[:2])])._repr_html_()  # one group
    assert "<small" not in Strips([("x", "y", pictures[:2], ["CLIP: a", "b"])])._repr_html_()
