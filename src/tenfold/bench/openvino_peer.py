"""OpenVINO GenAI as a peer of `tenfold bench speculative`: run by the Python of `.peers`, never imported by tenfold.

    .peers/bin/python openvino_peer.py MODEL.gguf THREADS

Reads lines {"ids": [...], "tokens": 96, "stops": [0, 2]} and answers each, greedily, with
{"ids": [...], "cpu": seconds of this process's threads, "wall": seconds}. The first line out is {"version": "..."}.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main(model: str, threads: int) -> None:
    talk, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr  # what the library prints is not an answer
    os.dup2(2, 1)
    import numpy
    import openvino
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=threads, NUM_STREAMS="1")
    print(json.dumps({"version": openvino_genai.__version__}), file=talk, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        ids = numpy.array([asked["ids"]], dtype=numpy.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids)))
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.do_sample = asked["tokens"], False
        config.eos_token_id, config.stop_token_ids = asked["stops"][0], set(asked["stops"])
        wall, cpu = time.perf_counter(), time.process_time()
        result = pipeline.generate(inputs, config)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        print(json.dumps({"ids": list(result.tokens[0]), "cpu": cpu, "wall": wall}), file=talk, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
