"""T1: killed at random moments, a run goes on with the same command and ends with the same weights and optimizer."""

import random
import signal
import time
from pathlib import Path

from harness import Check, Job, Result, baseline, check_finished, main, trial


def run(result: Result, trials: int, rng: random.Random, folder: Path) -> None:
    """Kills at uniform random times over the whole command; every fourth trial is killed twice."""
    job = Job(folder / "job")
    expected, duration_s = baseline(Job)
    kills = identical = done = 0
    while done < trials:
        with trial(folder, done) as out:
            hits = 0
            for _ in range(2 if done % 4 == 3 else 1):
                child = job.start(out)
                time.sleep(rng.uniform(0, duration_s))
                hits += child.send(signal.SIGKILL)
                child.wait()
            if not hits:
                continue  # it had ended before
            kills += hits
            identical += check_finished(result, job, out, expected, f"trial {done}")
            done += 1
    result.figures |= {"runs": trials, "kills": kills, "identical": identical, "one_run_s": round(duration_s, 1)}


CHECK = Check("T1", "SIGKILL at random moments, resumed to the same bits", 50, run)

if __name__ == "__main__":
    main(CHECK)
