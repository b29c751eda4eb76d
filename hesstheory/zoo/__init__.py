"""Networks and data: what the theory, the estimators and the checks are tried on.

- small networks with known Hessians, from one registry;
- full-scale networks and real images;
- transformers, and source text as tokens;
- problems with prescribed Hessians, and tied weights of known bias.

Parameters are drawn from the generator alone. No function here uses the global random stream.
"""

from hesstheory.zoo.data import Data, digit_images, digit_rows, digits
from hesstheory.zoo.full_scale import (
    FULL_SCALE,
    VGG,
    Architecture,
    BasicBlock,
    ResNet,
    TwoExits,
    full_scale_problem,
    resnet18,
    resnet34,
    vgg11,
)
from hesstheory.zoo.image_sets import images
from hesstheory.zoo.initial import initialise
from hesstheory.zoo.networks import Attention, Recurrent, ResidualBlock, TiedAutoencoder, Transposed
from hesstheory.zoo.prescribed import Block, QuadraticForms, mean_output, prescribed
from hesstheory.zoo.problems import batches, problem, trained
from hesstheory.zoo.registry import MEDIUM, SMALL, TRAIN_MODE, Network, network
from hesstheory.zoo.text import sequences, tokens
from hesstheory.zoo.ties import (
    TiedPair,
    TwoUses,
    half_squared_error,
    linear_autoencoder,
    tied_pairs,
)
from hesstheory.zoo.transformers import (
    GPT,
    TextClassifier,
    TransformerBlock,
    VisionTransformer,
    language_model,
    next_token_loss,
)

__all__ = [
    "FULL_SCALE",
    "GPT",
    "MEDIUM",
    "SMALL",
    "TRAIN_MODE",
    "VGG",
    "Architecture",
    "Attention",
    "BasicBlock",
    "Block",
    "Data",
    "Network",
    "QuadraticForms",
    "Recurrent",
    "ResNet",
    "ResidualBlock",
    "TextClassifier",
    "TiedAutoencoder",
    "TiedPair",
    "TransformerBlock",
    "Transposed",
    "TwoExits",
    "TwoUses",
    "VisionTransformer",
    "batches",
    "digit_images",
    "digit_rows",
    "digits",
    "full_scale_problem",
    "half_squared_error",
    "images",
    "initialise",
    "language_model",
    "linear_autoencoder",
    "mean_output",
    "network",
    "next_token_loss",
    "prescribed",
    "problem",
    "resnet18",
    "resnet34",
    "sequences",
    "tied_pairs",
    "tokens",
    "trained",
    "vgg11",
]
