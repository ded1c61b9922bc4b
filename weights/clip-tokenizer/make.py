"""Makes merges.txt, CLIP's merges as transformers has them, of the vocabulary that OpenAI published with CLIP and that is part of
OpenCLIP's package (open_clip/bpe_simple_vocab_16e6.txt.gz).

    python make.py bpe_simple_vocab_16e6.txt.gz
"""

import gzip
import os
import sys


def main():
    lines = gzip.open(sys.argv[1], "rt", encoding="utf-8").read().split("\n")
    # of the 49408 tokens 256 are bytes, 256 are bytes that end a word and 2 are special; the first line is a version
    merges = lines[1 : 49408 - 2 * 256 - 2 + 1]
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "merges.txt")
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("#version: 0.2\n" + "\n".join(merges) + "\n")
    print(len(merges), "merges")


if __name__ == "__main__":
    main()
