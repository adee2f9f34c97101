"""A network cut in two computes what it computed whole; outputs taken in passing are the network's own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.backbones.cut import body, cuts, inner, plain_attention, random_images, split, taken
from stages.cli import UserError
from tests.backbones.conftest import network

# library, network, image size, cuts: containers, single layers, in and between blocks
NETWORKS = [
    ("torchvision", "resnet18", 64, ["conv1", "bn1", "layer2.0", "layer3", "avgpool", "pooled"]),
    ("timm", "tf_efficientnet_lite0", 64, ["conv_stem", "blocks.2", "blocks.2.0.conv_pw", "blocks.4", "pooled"]),
    (
        "torchvision",
        "densenet121",
        64,
        ["features.denseblock2", "features.transition2.pool", "features.norm5", "pooled"],
    ),
    ("timm", "test_vit", 160, ["patch_embed", "blocks.1", "norm", "pooled"]),
    ("torchvision", "swin_t", 64, ["features.1", "features.2", "features.5.3", "pooled"]),
    ("timm", "convnext_atto", 64, ["stem", "stages.1.blocks.0", "stages.2", "pooled"]),
    ("torchvision", "mobilenet_v3_small", 64, ["features.0.0", "features.8", "classifier.1", "pooled"]),
    ("torchvision", "squeezenet1_1", 64, ["features.2", "features.7", "classifier.1"]),
    ("torchvision", "googlenet", 64, ["maxpool1", "inception4b", "pooled"]),
    ("timm", "mixnet_s", 64, ["blocks.3", "pooled"]),
    ("textbook", "small_cnn", 64, ["conv1", "relu1", "pool1", "conv2", "pool2", "average", "hidden", "pooled"]),
    ("torchvision", "regnet_y_400mf", 64, ["trunk_output.block2", "pooled"]),
]


def images(size: int, count: int = 3) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize(
    ("library", "name", "size", "cut"),
    [pytest.param(lib, name, size, cut, id=f"{name}-{cut}") for lib, name, size, all_ in NETWORKS for cut in all_],
)
def test_network_split_at_a_cut_computes_as_the_whole_network(library: str, name: str, size: int, cut: str) -> None:
    whole = network(library, name)
    parts = split(whole, cut, size)
    x = images(size)
    with plain_attention(), torch.no_grad():
        activation = parts.below(x)
        kept = activation.clone()
        assert activation.shape == (3, *parts.shape)
        assert torch.equal(parts.above(activation), whole(x))
        assert torch.equal(activation, kept)  # what lies above must not spoil what is stored
    assert cut in cuts(whole, size)


@pytest.mark.parametrize(
    ("library", "name", "size", "cut"),
    [
        ("timm", "tf_efficientnet_lite0", 64, "blocks.3"),
        ("torchvision", "resnet18", 64, "image"),
        ("torchvision", "densenet121", 64, "features.norm5"),
        ("timm", "test_vit", 160, "blocks.0"),
        ("timm", "convnext_atto", 64, "stages.2"),
        ("textbook", "small_cnn", 64, "pool1"),
    ],
)
def test_the_body_gives_what_the_last_linear_layer_reads(library: str, name: str, size: int, cut: str) -> None:
    whole, x = network(library, name), images(size)
    found = body(whole, cut, size)
    below = split(whole, cut, size).below
    with plain_attention(), torch.no_grad():
        vectors = found.part(below(x))
        assert vectors.shape == (3, found.width)
        assert torch.equal(whole.get_submodule(str(found.classifier))(vectors), whole(x))


@pytest.mark.parametrize("cut", ["features.7", "image"])
def test_where_a_convolution_is_the_classifier_the_map_that_it_reads_is_averaged(cut: str) -> None:
    whole, x = network("torchvision", "squeezenet1_1"), images(64)
    found = body(whole, cut, 64)
    with torch.no_grad():
        vectors = found.part(split(whole, cut, 64).below(x))
        assert torch.equal(vectors, whole.features(x).mean((2, 3)))
    assert (found.width, found.classifier) == (512, None)


def test_above_pooled_is_the_classifier_alone_and_the_image_is_a_cut() -> None:
    whole = network("timm", "tf_efficientnet_lite0")
    assert {n for n, _ in split(whole, "pooled", 64).above.named_parameters()} == {
        "classifier.weight",
        "classifier.bias",
    }
    parts = split(whole, "image", 64)
    assert parts.shape == (3, 64, 64)
    assert torch.equal(parts.above(parts.below(images(64))), whole(images(64)))


def test_parts_share_the_networks_parameters_under_their_names() -> None:
    whole = network("torchvision", "resnet18")
    parts = split(whole, "layer3", 64)
    own = dict(whole.named_parameters())
    below, above = dict(parts.below.named_parameters()), dict(parts.above.named_parameters())
    assert below.keys() | above.keys() == own.keys()
    assert not below.keys() & above.keys()
    assert all(own[n] is p for n, p in (below | above).items())


def test_training_above_the_cut_leaves_what_is_below_as_it_was() -> None:
    torch.manual_seed(0)
    whole = Dropping()
    parts = split(whole, "lower", 16)
    frozen = {n: t.clone() for n, t in parts.below.state_dict().items()}
    above = {n: t.clone() for n, t in parts.above.state_dict().items()}
    assert not parts.below.training
    parts.above.train()
    optimiser = torch.optim.SGD(parts.above.parameters(), lr=0.1)
    activation = parts.below(images(16)).detach()
    assert not torch.equal(parts.above(activation), parts.above(activation))  # dropout is alive
    parts.above(activation).square().sum().backward()
    optimiser.step()
    assert all(torch.equal(t, frozen[n]) for n, t in parts.below.state_dict().items())
    changed = {n for n, t in parts.above.state_dict().items() if not torch.equal(t, above[n])}
    assert changed >= {"upper.0.weight", "upper.1.running_mean", "upper.1.running_var", "head.weight"}


class Dropping(nn.Module):
    """Two stages with batch norm, and dropout as a function before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.lower = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.upper = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.upper(self.lower(x)).mean((2, 3))
        return self.head(functional.dropout(x, 0.5, self.training))


class Known(nn.Module):
    """A small network whose cuts are known by looking at it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.skipped = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.twice = nn.ReLU()
        self.unused = nn.Conv2d(8, 8, 1)
        self.block = nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.twice(x + self.skipped(x))
        x = self.twice(self.block(x))
        return self.fc(self.drop(self.pool(x).flatten(1)))


def test_cuts_of_a_network_that_is_known_by_looking_at_it() -> None:
    wanted = ["stem.0", "stem.1", "stem", "block.0", "block.1", "block", "pool", "pooled"]  # dropout hands on its input
    assert cuts(Known(), 16) == wanted


@pytest.mark.parametrize(("library", "name", "size"), [("timm", "test_resnet", 64), ("timm", "test_vit", 160)])
def test_every_module_can_be_cut_at_or_is_refused_as_the_list_says(library: str, name: str, size: int) -> None:
    whole = network(library, name)
    good = []
    for module in [n for n, _ in whole.named_modules() if n]:
        try:
            split(whole, module, size)
        except UserError:
            continue
        good.append(module)
    listed = set(cuts(whole, size)) - {"pooled"}
    # Modules that hand on what they got (an empty shortcut, dropout) name the tensor that came in: split refuses or
    # takes them, and the list leaves them out.
    silent = {n for n, m in whole.named_modules() if isinstance(m, nn.Identity | nn.Dropout)}
    assert set(good) - silent == listed
    assert len(listed) > 5


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ("blok", "blok is no module of the network; did you mean block? good cuts: stem.0, stem.1, stem, block.0, "),
        ("", "is no module of the network"),
        ("skipped", "cut: skipped: a skip connection crosses it"),
        ("skipped.0", "cut: skipped.0: a skip connection crosses it"),
        (
            "twice",
            "cut: twice: this module runs 2 times in a pass of the network, so it has no one output; name another; ",
        ),
        ("unused", "cut: unused: this module is never called"),
        ("fc", "cut: fc: nothing lies above it"),
    ],
)
def test_a_cut_that_cannot_be_is_refused_with_the_reason(cut: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        split(Known(), cut, 16)
    assert message in str(error.value)
    assert "good cuts: stem.0, stem.1, stem, block.0, " in str(error.value)
    assert "\n" not in str(error.value)


def test_a_size_that_the_network_does_not_take_is_refused() -> None:
    from torchvision.models import VisionTransformer

    with pytest.raises(UserError, match="image_size: 64: the network takes no images of 64 x 64 pixels"):
        split(VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3), "encoder.layers.encoder_layer_0", 64)


def test_inside_a_batch_norm_is_no_cut() -> None:
    whole = network("timm", "tf_efficientnet_lite0")
    with pytest.raises(UserError, match=r"bn1.act lies inside a normalisation layer.*good cuts: .*blocks\.3, "):
        split(whole, "bn1.act", 64)
    assert not [n for n in cuts(whole, 64) if ".act" in n]


def test_finding_cuts_leaves_no_trace() -> None:
    whole = Known()
    whole.stem.requires_grad_(False)
    before = {n: p.requires_grad for n, p in whole.named_parameters()}
    state = torch.random.get_rng_state()
    cuts(whole, 16)
    split(whole, "stem", 16)
    assert {n: p.requires_grad for n, p in whole.named_parameters()} == before
    assert all(p.grad is None for p in whole.parameters())
    assert not any(m._forward_hooks for m in whole.modules())
    assert not whole.training
    assert torch.equal(torch.random.get_rng_state(), state)


# ---- outputs taken in passing


def hooked(whole: nn.Module, names: Sequence[str], x: Tensor) -> dict[str, Tensor]:
    """What modules give in a plain pass of the undivided network."""
    found: dict[str, Tensor] = {}
    modules = dict(whole.named_modules())
    hooks = [
        modules[n].register_forward_hook(lambda _m, _a, out, n=n: found.update({n: out.clone()}))  # type: ignore[misc]
        for n in names
    ]
    with plain_attention(), torch.no_grad():
        found["logits"] = whole(x)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(
    ("library", "name", "size", "layers"),
    [
        ("torchvision", "resnet18", 64, ["bn1", "layer1.0.conv1", "layer3"]),  # a ReLU works in place on bn1's output
        ("torchvision", "densenet121", 64, ["features.norm5", "features.denseblock1"]),
        ("timm", "tf_efficientnet_lite0", 64, ["blocks.3.1.conv_pw", "blocks.5"]),
        ("timm", "convnext_atto", 64, ["stages.0", "stages.3"]),  # maps with the channels last in memory alone
    ],
)
def test_a_layers_map_is_averaged_over_its_area(library: str, name: str, size: int, layers: list[str]) -> None:
    whole, x = network(library, name), images(size)
    wanted = hooked(whole, layers, x)
    with torch.no_grad():
        *found, logits = taken(whole, "pooled", layers, True, size)(x)
    for layer, vector in zip(layers, found, strict=True):
        assert torch.equal(vector, wanted[layer].mean((2, 3))), layer
    assert torch.equal(logits, wanted["logits"])


@pytest.mark.parametrize(
    ("library", "name", "size", "cut", "layers"),
    [
        ("torchvision", "resnet18", 64, "layer2", ["layer3.0.bn1", "layer4", "pooled"]),  # a ReLU works in place on it
        ("timm", "tf_efficientnet_lite0", 64, "blocks.3", ["blocks.4.0.bn1", "blocks.5", "blocks.3"]),
        ("timm", "test_vit", 160, "blocks.0", ["blocks.1.attn", "blocks.2"]),
        ("torchvision", "swin_t", 64, "features.1", ["features.3"]),
        ("timm", "test_resnet", 64, "image", ["layer1", "layer4.0.conv1"]),
        ("timm", "test_resnet", 64, "pooled", ["pooled"]),
    ],
)
def test_layers_above_a_cut_give_what_they_give_in_the_whole_network(
    library: str, name: str, size: int, cut: str, layers: list[str]
) -> None:
    whole, x = network(library, name), images(size)
    with torch.no_grad():
        wanted = taken(whole, "pooled", layers, False, size)(x)
        activation = x if cut == "image" else taken(whole, cut, [], False, size)(x)[0]
        before = activation.clone()
        found = inner(whole, cut, layers, size)(activation)
    assert torch.equal(found, torch.cat(wanted, dim=1))
    assert torch.equal(activation, before)


def test_a_layer_that_needs_more_than_the_activation_at_the_cut_is_refused() -> None:
    with pytest.raises(UserError, match=r"layers: layer1\.0 does not lie above the cut layer2"):
        inner(network("timm", "test_resnet"), "layer2", ["layer4", "layer1.0"], 64)


def test_a_map_with_its_channels_last_is_averaged_over_its_area() -> None:
    whole, x = network("torchvision", "swin_t"), images(64)
    wanted = hooked(whole, ["features.3"], x)["features.3"]
    (found,) = taken(whole, "pooled", ["features.3"], False, 64)(x)
    assert wanted.shape == (3, 8, 8, 192)
    assert torch.equal(found, wanted.mean((1, 2)))


def test_of_tokens_the_class_token_and_the_mean_of_the_others_are_taken() -> None:
    whole, x = network("timm", "test_vit"), images(160)
    wanted = hooked(whole, ["patch_embed", "blocks.2"], x)
    before, tokens = taken(whole, "pooled", ["patch_embed", "blocks.2"], False, 160)(x)
    assert wanted["blocks.2"].shape == (3, 101, 64)
    assert torch.equal(tokens, torch.cat([wanted["blocks.2"][:, 0], wanted["blocks.2"][:, 1:].mean(1)], 1))
    assert wanted["patch_embed"].shape == (3, 10, 10, 64)  # a map still, its channels last
    assert torch.equal(before, wanted["patch_embed"].mean((1, 2)))


def test_torchvisions_class_token_is_known_too() -> None:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    whole = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3).eval()
    nn.init.normal_(whole.heads.head.weight)  # it starts at zero, and then all logits are equal
    wanted = hooked(whole, ["encoder.layers.encoder_layer_0"], images(32))["encoder.layers.encoder_layer_0"]
    (found,) = taken(whole, "pooled", ["encoder.layers.encoder_layer_0"], False, 32)(images(32))
    assert torch.equal(found, torch.cat([wanted[:, 0], wanted[:, 1:].mean(1)], 1))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto", "mixnet_s", "test_vit"])
def test_pooled_is_what_timm_calls_pre_logits(name: str) -> None:
    whole, size = network("timm", name), 160 if name == "test_vit" else 64
    with torch.no_grad():
        wanted = whole.forward_head(whole.forward_features(images(size)), pre_logits=True)
        (found,) = taken(whole, "pooled", [], False, size)(images(size))
    assert torch.equal(found, wanted)


def test_pooled_of_a_network_without_a_classifier_is_what_it_gives() -> None:
    import timm

    torch.manual_seed(0)
    whole = timm.create_model("test_resnet", num_classes=0).eval()
    (found,) = taken(whole, "pooled", [], False, 64)(images(64))
    assert torch.equal(found, whole(images(64)))


def test_a_cut_gives_the_modules_whole_output_even_where_the_network_goes_on_in_place() -> None:
    whole, x = network("torchvision", "resnet18"), images(64)
    wanted = hooked(whole, ["bn1"], x)
    found, logits = taken(whole, "bn1", [], True, 64)(x)
    assert (wanted["bn1"] < 0).any()
    assert torch.equal(found, wanted["bn1"])
    assert torch.equal(logits, wanted["logits"])


def test_squeezenet_has_no_pooled_and_the_error_names_what_there_is() -> None:
    whole = network("torchvision", "squeezenet1_1")
    with pytest.raises(UserError, match=r"do not come from one linear layer .* good cuts: .*features"):
        taken(whole, "pooled", [], False, 64)
    (found,) = taken(whole, "pooled", ["features"], False, 64)(images(64))
    assert found.shape == (3, 512)


class Cube(nn.Module):
    """Its first layer gives 16 x 16 x 16 for images of 16 x 16 pixels."""

    def __init__(self, fixed: bool):
        super().__init__()
        self.conv, self.fc, self.fixed = nn.Conv2d(3, 16, 1), nn.Linear(16, 3), fixed

    def forward(self, x: Tensor) -> Tensor:
        if self.fixed:
            torch._assert(x.shape[-1] == 16, "images of 16 x 16 pixels only")
        return self.fc(self.conv(x).mean((2, 3)))


def test_of_a_cube_the_axes_that_grow_with_the_image_are_the_map() -> None:
    whole = Cube(fixed=False)
    (found,) = taken(whole, "pooled", ["conv"], False, 16)(images(16))
    assert torch.equal(found, whole.conv(images(16)).mean((2, 3)))
    with pytest.raises(
        UserError, match="layers: conv: its output for 2 images is 2 x 16 x 16 x 16, which is not plainly"
    ):
        taken(Cube(fixed=True), "pooled", ["conv"], False, 16)


def test_windows_are_not_taken_for_images() -> None:
    # Inside swin's attention a window is a row: 2 images have 128 of them.
    whole = network("timm", "swin_s3_tiny_224")
    with pytest.raises(UserError, match=r"layers: layers.0.blocks.0.attn.proj: its output for 2 images is \d\d+ x "):
        taken(whole, "pooled", ["layers.0.blocks.0.attn.proj"], False, 224)


def test_noise_is_always_the_same() -> None:
    assert torch.equal(random_images(8), random_images(8))
    assert random_images(8).shape == (2, 3, 8, 8)
