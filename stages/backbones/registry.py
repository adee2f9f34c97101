"""Every classification network of timm and torchvision by its name, and what it expects of an image.

The library `textbook` has one network, small_cnn, without weights of its own.

A name may carry a tag that tells which of several pretrained weights is meant, as timm writes it: `resnet50.a1_in1k`,
and for torchvision likewise `resnet50.IMAGENET1K_V1`. Without a tag it is the library's default.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from stages.cli import UserError
from stages.params import suggest

if TYPE_CHECKING:
    from torch import nn

LIBRARIES = ("timm", "torchvision", "textbook")

# torchvision's Inception and GoogLeNet are built as their pretrained weights want them: fed with images in ImageNet's
# scaling, which they change to their own, and without the auxiliary classifiers, which only their training used.
_TORCHVISION_OPTIONS = {
    "googlenet": {"transform_input": True, "aux_logits": False, "init_weights": True},
    "inception_v3": {"transform_input": True, "aux_logits": False, "init_weights": True},
}


@dataclass(frozen=True)
class NetworkFacts:
    """What a library says about a network with its pretrained weights.

    mean, std : of the three colours, pixels scaled to 0 ... 1; image_size : side of the square it was made for;
    classes : number of its logits, 0 when it has no classifier.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    interpolation: str
    classes: int
    licence: str


def network_names(library: str) -> list[str]:
    """Return the names of the library's classification networks, without tags."""
    if library == "timm":
        import timm

        names: list[str] = timm.list_models()
    elif library == "textbook":
        names = ["small_cnn"]
    else:
        from torchvision import models

        names = models.list_models(module=models)
    return names


def network_facts(library: str, network: str) -> NetworkFacts:
    """Return what the library says about a network; raises UserError with the nearest names for one it has not."""
    if library == "textbook":
        _check_name(library, network)
        return NetworkFacts((0.5,) * 3, (0.5,) * 3, 64, "bilinear", 10, "none needed: it has no weights")
    return _timm_facts(network) if library == "timm" else _torchvision_facts(network)


def build_network(library: str, network: str, classes: int | None = None) -> nn.Module:
    """Build a network with random weights, in eval mode; nothing is downloaded.

    classes : number of logits, if not the library's own. Raises UserError for a name that the library has not.
    """
    facts = network_facts(library, network)
    options: dict[str, Any] = {} if classes in (None, facts.classes) else {"num_classes": classes}
    if library == "timm":
        import timm

        model: nn.Module = timm.create_model(network, pretrained=False, **options)
    elif library == "textbook":
        from stages.backbones.textbook import small_cnn

        model = small_cnn(classes or facts.classes)
    else:
        from torchvision import models

        name = network.partition(".")[0]
        model = models.get_model(name, weights=None, **_TORCHVISION_OPTIONS.get(name, {}), **options)
    return model.eval()


def torchvision_weights(network: str) -> Any:
    """Return torchvision's record of the pretrained weights that `name` or `name.TAG` stands for."""
    from torchvision import models

    name, _, tag = network.partition(".")
    _check_name("torchvision", name)
    known = models.get_model_weights(name)
    if not tag:
        return known.DEFAULT
    tags = [w.name for w in known]
    if tag not in tags:
        raise _unknown("torchvision", network, [f"{name}.{t}" for t in tags])
    return known[tag]


@cache
def _timm_facts(network: str) -> NetworkFacts:
    import timm

    name, _, tag = network.partition(".")
    _check_name("timm", name)
    try:
        config = timm.get_pretrained_cfg(network)
    except RuntimeError:
        config = None
    if config is None and tag:
        raise _unknown("timm", network, timm.list_pretrained(f"{name}.*"))
    if config is None:
        raise UserError(f"network {network}: timm does not say what images it expects, so it cannot be a backbone")
    _, height, width = config.input_size
    if height != width or len(config.mean) != 3:
        raise UserError(f"network {network} takes images of {config.input_size}: only square ones in colour can be fed")
    return NetworkFacts(
        mean=tuple(config.mean),
        std=tuple(config.std),
        image_size=height,
        interpolation=config.interpolation,
        classes=config.num_classes,
        licence=config.license or "not stated by timm",
    )


@cache
def _torchvision_facts(network: str) -> NetworkFacts:
    weights = torchvision_weights(network)
    images = weights.transforms()
    return NetworkFacts(
        mean=tuple(images.mean),
        std=tuple(images.std),
        image_size=images.crop_size[0],
        interpolation=images.interpolation.value,
        classes=len(weights.meta["categories"]),
        licence=weights.meta.get("license", "BSD-3-Clause (torchvision's; it states none for the weights)"),
    )


def _check_name(library: str, name: str) -> None:
    if name not in network_names(library):
        raise _unknown(library, name, network_names(library))


def _unknown(library: str, network: str, known: list[str]) -> UserError:
    hint = suggest(network, known)
    if not hint.startswith("did you mean"):  # a thousand names help nobody
        hint = "timm's names: python -c 'import timm; print(timm.list_models())'" if library == "timm" else hint
    return UserError(f"network {network} is none of {library}'s; {hint}")
