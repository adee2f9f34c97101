"""Networks by name: what the libraries say of them, and what is answered to a name that they have not."""

from __future__ import annotations

import pytest

from stages.backbones.registry import build_network, network_facts, network_names
from stages.cli import UserError


def test_facts_are_those_that_the_libraries_publish() -> None:
    lite = network_facts("timm", "tf_efficientnet_lite0")
    assert (lite.mean, lite.std, lite.image_size) == ((0.5,) * 3, (0.5,) * 3, 224)
    assert (lite.interpolation, lite.classes, lite.licence) == ("bicubic", 1000, "apache-2.0")
    squeezenet = network_facts("torchvision", "squeezenet1_1")
    assert (squeezenet.mean, squeezenet.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (squeezenet.interpolation, squeezenet.classes) == ("bilinear", 1000)


def test_a_tag_names_one_of_several_weights() -> None:
    assert network_facts("timm", "resnet50.a1_in1k").classes == 1000
    assert network_facts("timm", "convnext_tiny.fb_in22k").classes == 21841
    assert network_facts("torchvision", "regnet_y_16gf.IMAGENET1K_SWAG_E2E_V1").image_size == 384
    assert network_facts("torchvision", "regnet_y_16gf.IMAGENET1K_V1").image_size == 224


def test_both_libraries_list_their_classification_networks_alone() -> None:
    assert {"resnet50", "vit_b_16", "squeezenet1_1"} <= set(network_names("torchvision"))
    assert "fcn_resnet50" not in network_names("torchvision")  # segmentation
    assert len(network_names("timm")) > 1000


@pytest.mark.parametrize(
    ("library", "name", "message"),
    [
        ("timm", "tf_eficientnet_lite0", "none of timm's; did you mean tf_efficientnet_lite0?"),
        ("timm", "resnet50.a1_in1", "none of timm's; did you mean resnet50.a1_in1k?"),
        ("torchvision", "squeezenet11", "none of torchvision's; did you mean squeezenet1_1?"),
        ("torchvision", "resnet50.IMAGENET1K_V3", "did you mean resnet50.IMAGENET1K_V2?"),
    ],
)
def test_a_wrong_name_is_answered_by_the_nearest(library: str, name: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        build_network(library, name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_googlenet_has_the_shape_of_its_published_weights() -> None:
    # num_params in torchvision's documentation of GoogLeNet_Weights, which leaves out the auxiliary classifiers.
    network = build_network("torchvision", "googlenet")
    assert sum(p.numel() for p in network.parameters()) == 6_624_904
    assert network.transform_input
