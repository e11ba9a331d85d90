"""Small versions of published networks, made from configurations, with random weights: nothing is downloaded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

Made = tuple[nn.Module, tuple[Tensor, ...]]


def _library(name: str) -> Any:
    """transformers or diffusers, of the group `dev`; a test that needs what is not installed is skipped."""
    return pytest.importorskip(name)


@dataclass(frozen=True)
class Network:
    """A network and its input.

    Attributes:
        name: What the tests call it.
        make: Gives model and input, without dropout and other randomness, for then two of them can be compared.
        swapped: How many modules of which class it has for `convert`.
    """

    name: str
    make: Callable[[], Made]
    swapped: dict[str, int]

    def build(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Made:
        torch.manual_seed(seed)
        model, inputs = self.make()
        return model.to(dtype).train(), tuple(tensor.to(dtype) for tensor in inputs)


def output_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """The first tensor of what the model returns, whatever that is."""
    output = model(*inputs)
    while not isinstance(output, Tensor):
        output = output[0]
    return output


def _resnet() -> Made:
    t = _library("transformers")
    config = t.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32], depths=[2, 2], layer_type="bottleneck", num_labels=5
    )
    return t.ResNetForImageClassification(config), (torch.randn(3, 3, 40, 36),)


def _convnext() -> Made:
    t = _library("transformers")
    config = t.ConvNextConfig(hidden_sizes=[8, 16], depths=[2, 1], num_stages=2, num_labels=5)
    return t.ConvNextForImageClassification(config), (torch.randn(2, 3, 32, 40),)


def _mobilenet() -> Made:
    t = _library("transformers")
    config = t.MobileNetV2Config(
        depth_multiplier=0.25,
        min_depth=4,
        depth_divisible_by=4,
        output_stride=8,
        classifier_dropout_prob=0.0,
        num_labels=5,
    )
    return t.MobileNetV2ForImageClassification(config), (torch.randn(4, 3, 48, 48),)


def _whisper() -> Made:
    t = _library("transformers")
    config = t.WhisperConfig(
        d_model=16,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        num_mel_bins=12,
        max_source_positions=20,
        dropout=0.0,
    )
    return t.models.whisper.modeling_whisper.WhisperEncoder(config), (torch.randn(2, 12, 40),)


def _wav2vec2() -> Made:
    t = _library("transformers")
    config = t.Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8, 8),
        conv_stride=(5, 2, 2),
        conv_kernel=(10, 3, 2),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
        mask_time_prob=0.0,
    )
    return t.Wav2Vec2Model(config), (torch.randn(2, 400),)


def _videomae() -> Made:
    t = _library("transformers")
    config = t.VideoMAEConfig(
        image_size=16,
        patch_size=8,
        num_frames=4,
        tubelet_size=2,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=5,
    )
    return t.VideoMAEForVideoClassification(config), (torch.randn(2, 4, 3, 16, 16),)


def _dpt() -> Made:
    """Dense prediction: a vision transformer whose patches are upsampled by transposed convolutions."""
    t = _library("transformers")
    config = t.DPTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[4, 8, 8, 16],
        fusion_hidden_size=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        semantic_classifier_dropout=0.0,
        is_hybrid=False,
        initializer_range=0.2,
    )
    return t.DPTForDepthEstimation(config), (torch.randn(1, 3, 32, 32),)


def _unet() -> Made:
    d = _library("diffusers")
    model = d.UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )
    return model, (torch.randn(2, 3, 16, 16), torch.tensor([3.0, 7.0]))


def _vae() -> Made:
    """An audio autoencoder: weight_norm on 1-D convolutions and, in the decoder, transposed ones."""
    d = _library("diffusers")
    model = d.AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_channels=8,
        decoder_input_channels=4,
        audio_channels=2,
    )
    return model, (torch.randn(1, 2, 64),)


NETWORKS = [
    Network("resnet", _resnet, {"Conv2d": 15}),
    Network("convnext", _convnext, {"Conv2d": 5}),
    Network("mobilenet_v2", _mobilenet, {"Conv2d": 52}),
    Network("whisper", _whisper, {"Conv1d": 2}),
    Network("wav2vec2", _wav2vec2, {"Conv1d": 3, "ParametrizedConv1d": 1}),
    Network("videomae", _videomae, {"Conv3d": 1}),
    Network("dpt", _dpt, {"Conv2d": 33, "ConvTranspose2d": 2}),
    Network("unet", _unet, {"Conv2d": 25}),
    Network("oobleck_vae", _vae, {"Conv1d": 30, "ConvTranspose1d": 2}),
]
