"""Who decodes what: DALI graphs for pictures and for streams of video, on the GPU or on the host."""

from __future__ import annotations

import numpy as np
import torch

from rhofast.config.schema import AugmentConfig, DataConfig
from rhofast.data.codecs import build_codec
from rhofast.data.decode.capabilities import choose_decoder, detect, say_pictures
from rhofast.data.decode.pipeline import DecodePipeline
from rhofast.data.decode.video_decoder import VideoDecoder
from rhofast.data.decode.video_limits import VideoLimits
from rhofast.data.format.reader import Reader
from rhofast.data.loader.batch import Batch, DecodingPart
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.types import AugmentPlan
from rhofast.errors import ConfigError, UndecodableError

_PATIENCE_S = 60.0  # for which reads are tried again while the machine refuses them


class Decoders:
    """Decodes batches whose samples may be stored in different ways.

    Args:
        data: The shard sets.
        augment: Options of augmentation.
        config: Options of loading.
        max_videos: Videos per batch, at most.
        max_pictures: Pictures per batch, at most.
        random_appearance: Whether plans may ask for color changes, blur and differences in time.
        device_id: The CUDA device; None for the CPU.
        dtype: Type of the finished pixels.
        sizes: Whether plans say to what size crops are resized.

    Attributes:
        descriptions: One sentence per codec of the data: who decodes it, and why.
        readers: One reader per set, which leaves to the host what the device does not decode.

    Raises:
        ConfigError: A decoder was asked for that is not available.
    """

    def __init__(
        self,
        data: Mixture,
        augment: AugmentConfig,
        config: DataConfig,
        *,
        max_videos: int,
        max_pictures: int,
        random_appearance: bool,
        device_id: int | None,
        dtype: torch.dtype,
        sizes: bool = False,
    ) -> None:
        self._data = data
        self.descriptions, limits = _choose(data, config, device_id)
        # Patience ends before the loader's own limit, so that the error says what the machine lacks.
        patience_s = min(_PATIENCE_S, config.timeout_s / 4)
        self.readers = [Reader(shards, limits, patience_s=patience_s) for shards in data.sets]
        video = None
        if limits:
            engines = max(limit.engines for limit in limits.values())
            threads = max(config.decode_threads, 2 * engines)
            video = VideoDecoder(max_samples=max_videos, threads=threads, device_id=device_id)
        self._pipelines = {
            pictures: DecodePipeline(
                augment,
                max_pictures=max_pictures,
                color=random_appearance and (augment.color > 0 or augment.gray > 0),
                blur=random_appearance and augment.blur > 0,
                threads=config.decode_threads,
                device_id=device_id,
                dtype=dtype,
                difference=random_appearance and augment.difference > 0,
                sizes=sizes,
                decoded=not pictures,
                video=None if pictures else video,
                hw_decoder_load=config.hw_decoder_load,
                ahead=device_id is not None,
            )
            for pictures in {codec.pictures for reader in self.readers for codec in reader.codecs}
        }

    def start(self, batch: Batch) -> list[DecodingPart]:
        """Begin to decode a batch; on a GPU also while others are still decoded.

        Samples that are stored as pictures and samples that are stored as streams take different graphs.

        Returns:
            What `collect` takes. What DALI has against the samples is raised there.
        """
        stored_as_pictures = [
            self.readers[self._data.locate(sample)[0]].codecs[row.codec].pictures
            for sample, row in zip(batch.samples.tolist(), batch.rows, strict=True)
        ]
        parts = []
        for pictures, pipeline in self._pipelines.items():
            places = [place for place, other in enumerate(stored_as_pictures) if other == pictures]
            if places:
                some = batch if len(places) == len(batch) else batch.take(places)
                started = pipeline.start(some.read, some.clips, some.augment)
                parts.append(DecodingPart(places=places, pipeline=pipeline, started=started))
        return parts

    def collect(self, parts: list[DecodingPart]) -> torch.Tensor:
        """Return the pixels of a batch, [B, P, C, T, H, W], to be finished.

        Args:
            parts: What `start` returned.

        Raises:
            UndecodableError: Samples were refused; it has the place of each in the batch.
        """
        decoded = []
        for part in parts:
            try:
                decoded.append(part.pipeline.collect(part.started))
            except UndecodableError as error:
                raise UndecodableError({part.places[place]: why for place, why in error.reasons.items()}) from None
        if len(decoded) == 1:
            return decoded[0]
        order = np.argsort(np.concatenate([part.places for part in parts]))
        flat = torch.cat([pixels.permute(0, 1, 3, 4, 5, 2) for pixels in decoded])
        return flat[torch.from_numpy(order).to(flat.device)].permute(0, 1, 5, 2, 3, 4)

    def finish(self, pixels: torch.Tensor, augment: AugmentPlan) -> torch.Tensor:
        """Finish decoded pixels: clamp, blur, and the type that the consumer gets."""
        pipeline = next(iter(self._pipelines.values()))  # They differ in what they decode, not in what comes after.
        return pipeline.finish(pixels, augment)


def _choose(data: Mixture, config: DataConfig, device_id: int | None) -> tuple[tuple[str, ...], dict[str, VideoLimits]]:
    """Return a sentence per codec, and what is left to the device's video decoder."""
    capabilities = detect(device_id)
    sentences: dict[str, str] = {}
    limits: dict[str, VideoLimits] = {}
    for codec in (build_codec(settings) for shards in data.sets for settings in shards.info.codecs):
        if codec.pictures:
            sentences[codec.name] = say_pictures(codec.name, capabilities, config.hw_decoder_load)
            continue
        try:
            choice, sentences[codec.name] = choose_decoder(codec.name, capabilities, config.decoder)
        except ValueError as error:
            raise ConfigError(f"data.decoder={config.decoder}: {error}", hint="--set data.decoder=auto") from None
        if choice == "nvdec":
            limits |= capabilities.video
    return tuple(sentences.values()), limits
