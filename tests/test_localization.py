import pytest
import torch

from patchsae_lib.explorer.drawings import spotlight
from patchsae_lib.localization import (
    latent_masks,
    patch_changes,
    reference_masks,
    share_inside,
)
from patchsae_lib.sae import SAE
from patchsae_lib.tokens import Tokens

PICTURE = torch.full((3, 8, 8), 200, dtype=torch.uint8)


def identity(d: int) -> SAE:
    sae = SAE(d, d).eval().requires_grad_(False)
    sae.W_enc.copy_(torch.eye(d))
    return sae


def test_a_mask_is_the_activation_of_each_patch_in_its_place() -> None:
    z = torch.arange(2 * 7 * 3).reshape(2, 7, 3).float()
    masks = latent_masks(identity(3), z, [2, 0], grid=(2, 3))
    assert masks.shape == (2, 2, 2, 3)
    assert torch.equal(masks[1, 0].flatten(), z[1, 1:, 2])  # CLS has no place
    assert torch.equal(masks[0, 1, 1], z[0, 4:, 0])
    square = latent_masks(identity(3), z[:, :6], [0], (2, 2))  # 4 patches and a prompt's token
    assert square.shape == (2, 1, 2, 2)
    with pytest.raises(ValueError, match="6 patches do not fill a grid of 3 × 3"):
        latent_masks(identity(3), z, [0], grid=(3, 3))


def test_the_masks_of_all_latents_in_pictures_of_their_own(monkeypatch) -> None:
    g = torch.Generator().manual_seed(0)
    tokens = Tokens.hold(torch.randn(5, 7, 3, generator=g), torch.tensor([8, 2, 4, 6, 0]))
    images = torch.tensor([[4, 8], [4, -1], [-1, -1]])  # of 3 latents
    at_once = reference_masks(identity(3), tokens, images, (2, 3))
    monkeypatch.setattr(SAE, "images_at_once", lambda *_, **__: 1)
    masks = reference_masks(identity(3), tokens, images, (2, 3))
    assert masks.shape == (3, 2, 2, 3)
    wanted = latent_masks(identity(3), tokens[[2, 0]], [0], (2, 3))[:, 0]
    assert torch.allclose(masks[0].float(), wanted, atol=1e-3)
    assert torch.equal(masks[1, 0], masks[1, 0].relu())
    assert not masks[1, 1].any()
    assert not masks[2].any()
    assert torch.equal(masks, at_once)


def test_one_scale_for_all_pictures() -> None:
    weak, strong = torch.full((2, 2), 0.5), torch.full((2, 2), 2.0)
    shown = [spotlight(PICTURE, mask, full=2.0).tobytes() for mask in (weak, strong, strong * 3)]
    assert shown[0] != shown[1]
    assert shown[1] == shown[2]  # nothing is more than full


def test_a_picture_keeps_its_colours_where_the_latent_is_active() -> None:
    red = torch.zeros(3, 8, 8, dtype=torch.uint8)
    red[0] = 255
    mask = torch.tensor([[1.0, 0.0]])
    image = spotlight(red, mask, full=1.0)
    left, right = image.getpixel((1, 1)), image.getpixel((6, 1))
    assert len(set(right)) == 1  # grey
    assert right[0] < 255 / 2
    assert left == (255, 0, 0)
    assert spotlight(red, mask * 0, full=0.0).getpixel((1, 1)) == right  # silent, not NaN


def test_a_picture_of_floats_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, h, w\) uint8, got torch.float32"):
        spotlight(PICTURE.float(), torch.ones(2, 2), 1.0)


def test_the_share_of_activity_inside_a_region() -> None:
    z = torch.zeros(2, 6, 3)  # CLS, four patches, and a prompt's token
    z[:, [0, 5]] = 100.0
    z[0, 1:5, 0], z[0, 1:5, 1] = torch.tensor([3.0, 0, 0, 1]), torch.tensor([0.0, 2, 0, 0])
    z[1, 1:5, 2] = torch.tensor([1.0, 1, 2, 4])
    inside = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 1]]).bool()
    shares = share_inside(identity(3), z, torch.tensor([[0, 1], [2, 0]]), inside)
    assert shares.tolist() == [[3 / 4, 0], [4 / 8, 0]]  # the last one is silent


def test_the_first_picture_may_be_a_reference_and_masks_are_of_their_latents() -> None:
    z = torch.arange(2 * 7 * 3).reshape(2, 7, 3).float()
    images = torch.tensor([[1, -1], [0, 1], [-1, 0]])
    masks = reference_masks(identity(3), Tokens.hold(z), images, (2, 3)).float()
    for latent, at, picture in ((0, 0, 1), (1, 0, 0), (1, 1, 1), (2, 1, 0)):
        wanted = latent_masks(identity(3), z[[picture]], [latent], (2, 3))[0, 0]
        assert torch.equal(masks[latent, at], wanted)
    assert not masks[0, 1].any()


def test_changes_of_patches_where_the_picture_changes_and_elsewhere() -> None:
    g = torch.Generator().manual_seed(0)
    first = torch.randn(3, 6, 3, generator=g)  # CLS, four patches, and a prompt's token
    second = first.clone()
    second[:, 1:3, 0] = first[:, 1:3, 0].relu() + 2  # latent 0: where pictures change
    second[:, 3:5, 1] = first[:, 3:5, 1].relu() + 1  # latent 1: elsewhere
    second[:, [0, 5], 2] += 9  # neither CLS nor prompts count
    is_changed = torch.tensor([[1, 1, 0, 0]] * 3).bool()
    got = patch_changes(identity(3), first, second, is_changed)
    assert torch.allclose(got, torch.tensor([[2.0, 0, 0], [0, 1, 0]]))
    whole = patch_changes(identity(3), first, second, torch.ones(3, 4).bool())
    assert torch.allclose(whole, torch.tensor([[1.0, 0.5, 0], [0, 0, 0]]))
    assert not patch_changes(identity(3), first, first, is_changed).any()
