"""The feature networks that are published: one function for each checkpoint."""

from .evaluation import evaluate_feature_net as evaluate  # noqa: F401 - for the command line
from .modeling_feature_net import FeatureNetConfig
from .training import FeatureNetRecipe
from .training import train_feature_net as train  # noqa: F401 - for the command line


def feature_net_digits() -> FeatureNetRecipe:
    """FeatureNet on scikit-learn's digits, 16 pixels: about a minute on two CPU cores."""
    return FeatureNetRecipe(
        name="feature-net-digits",
        model=FeatureNetConfig(image_size=16, hidden_sizes=[16, 32, 64], num_blocks=[1, 1, 1]),
        data="sklearn/digits",
        num_steps=600,
        batch_size=64,
    )


def feature_net_mnist() -> FeatureNetRecipe:
    """FeatureNet on MNIST: a few minutes on two CPU cores."""
    return FeatureNetRecipe(
        name="feature-net-mnist",
        model=FeatureNetConfig(hidden_sizes=[16, 32, 64], num_blocks=[1, 1, 1]),
        data="ylecun/mnist",
        num_steps=1500,
    )


def feature_net_fashion_mnist() -> FeatureNetRecipe:
    """FeatureNet on Fashion-MNIST: under an hour on two busy CPU cores; scores are in the card."""
    return FeatureNetRecipe(
        name="feature-net-fashion-mnist",
        model=FeatureNetConfig(hidden_sizes=[16, 32, 64, 128], num_blocks=[1, 1, 1, 1]),
        data="zalando-datasets/fashion_mnist",
        num_steps=5000,
        warmup_steps=500,
        random_flip=True,
    )
