"""How much the seed alone moves a score, and what five seeds can tell of two temperatures.

    python docs/studies/seeds.py WIKI.txt SENTEVAL

trains configs/unsup_wiki_mini.yaml with seeds 0 to 7, and with objective.temperature=0.05 and seeds
0 to 4, below outputs/studies/, and writes what `simcse compare` prints to seeds.md beside this
file. Started again it goes on where it stopped.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

STUDY = Path(__file__).with_suffix(".md")
FOLDER = Path("outputs/studies")
BASE, COLD = FOLDER / "temperature-0.1", FOLDER / "temperature-0.05"


def main() -> int:
    """Run what is missing, then write the results."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    text, senteval = sys.argv[1:]
    common = ["configs/unsup_wiki_mini.yaml", f"data.train={text}", f"evaluation.data={senteval}"]
    common += ["evaluation.raw_poolings=mean"]
    simcse("train", *common, "seeds=0,1,2,3,4", "objective.temperature=0.05", f"output={COLD}")
    seeds = simcse("train", *common, "seeds=0,1,2,3,4,5,6,7", f"output={BASE}")
    compared = simcse("compare", str(COLD), str(BASE), "--seeds", "0,1,2,3,4")
    summary = seeds[seeds.rindex("8 seeds;") : seeds.rindex("written to")].strip()
    before, _, after = STUDY.read_text(encoding="utf-8").partition("<!-- results -->")
    after = after[after.index("<!-- end -->") :]
    results = f"<!-- results -->\n```\n{summary}\n```\n\n```\n{compared.strip()}\n```\n{after}"
    STUDY.write_text(before + results, encoding="utf-8")
    return 0


def simcse(*arguments: str) -> str:
    """Run a command of this project, show and return what it prints."""
    command = [str(Path(sys.executable).parent / "simcse"), *arguments]
    print("$ simcse", *arguments, flush=True)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout or ():
        print(line, end="", flush=True)
        lines.append(line)
    if process.wait():
        raise SystemExit(process.returncode)
    return "".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
