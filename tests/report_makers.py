"""A made-up report of a training run, with everything in it."""

from __future__ import annotations

from typing import Any


def scores(accuracy: float) -> dict[str, Any]:
    corrupted = {
        f"{n} {s}": accuracy - 0.02 * s for n in ("gaussian noise", "gaussian blur", "contrast") for s in (1, 3, 5)
    }
    return {
        "accuracy": accuracy,
        "calibration_error": 0.021,
        "worst_class": 6,
        "worst_accuracy": accuracy - 0.17,
        "corrupted": corrupted,
    }


def stage(kind: str, numbers: int, validation: float, seconds: float, **more: Any) -> dict[str, Any]:
    curve = [[seconds * n / 8, validation - 0.04 + 0.005 * n] for n in range(1, 8)] if seconds > 100 else []
    return {
        "kind": kind,
        "numbers": numbers,
        "generated": numbers - 1762,
        "file_bytes": 4 * numbers + 4000,
        "validation": validation,
        "test": validation - 0.004,
        "seconds": seconds,
        "curve": curve,
        **more,
    }


def report() -> dict[str, Any]:
    return {
        "title": "Fashion-MNIST in five thousand numbers",
        "data": "fashion-mnist",
        "model": "small-cnn",
        "seed": 0,
        "dense": {"kind": "dense", "numbers": 80098, "file_bytes": 323760, "validation": 0.923, "test": 0.9171},
        "stages": [
            stage("select", 2354, 0.1021, 0.4, note="conv2 and conv3, mera"),
            stage("warm-start", 2354, 0.1871, 41.0, note="hierarchical SVD; the activation brought in over 50 steps"),
            stage("blocks", 2354, 0.6412, 188.0),
            stage("fine-tune", 2354, 0.8671, 905.0),
            stage("grow", 4120, 0.8702, 3.0),
            stage("fine-tune", 4120, 0.8764, 612.0),
            stage("quantize", 4120, 0.8755, 301.0, file_bytes=7410, note="8 bits"),
            stage("finish", 4120, 0.8755, 1.2, file_bytes=7410),
        ],
        "controls": [
            {
                "name": "from scratch",
                "numbers": 4120,
                "file_bytes": 20480,
                "test": [0.861, 0.859, 0.8635],
                "seconds": 2052.0,
                "epochs": 41,
            },
            {
                "name": "low rank",
                "numbers": 4210,
                "file_bytes": 20840,
                "test": [0.879, 0.8815, 0.8785],
                "seconds": 2051.0,
                "epochs": 66,
                "note": "rank 2",
            },
            {
                "name": "narrow dense",
                "numbers": 4066,
                "file_bytes": 20264,
                "test": [0.8712, 0.8701, 0.8688],
                "seconds": 2050.0,
                "epochs": 88,
            },
        ],
        "faithfulness": {
            "images": 10000,
            "model": scores(0.8715),
            "teacher": scores(0.9171),
            "agreement": 0.8931,
            "divergence": 0.1432,
            "similarity": {"conv1": 0.998, "conv2": 0.871, "conv3": 0.792, "head": None},
            "similarity_images": 2048,
        },
        "details": {
            "warm-start": [
                {"layer": "conv2", "method": "hierarchical SVD", "error": 0.91234, "truncation": 0.9},
                {"layer": "conv3", "method": "hierarchical SVD", "error": 0.9555, "truncation": 0.95},
            ],
            "grow": [
                {
                    "layer": "conv3",
                    "change": "bond 2 -> 3",
                    "numbers": 1204,
                    "gain": 0.0031,
                    "seconds": 75.2,
                    "kept": True,
                },
                {
                    "layer": "conv2",
                    "change": "bond 2 -> 3",
                    "numbers": 562,
                    "gain": -0.0002,
                    "seconds": 70.0,
                    "kept": False,
                },
            ],
            "quantize": [{"bits": 8, "bytes_before": 20480, "bytes_after": 7410, "accuracy_before": 0.8764}],
        },
        "environment": {"adntn": "0.2", "torch": "2.13.0", "threads": 1, "data": {"train": 54000}},
        "recipe": 'data = "fashion-mnist"\n\n[[stage]]\nkind = "select"\n',
        "files": {"cores.safetensors": "root and cores, for adntn.load", "dense.safetensors": "a plain state_dict"},
    }
