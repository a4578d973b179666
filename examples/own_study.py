"""Your own study: a folder with one file, a joint TPE search over the whole space with C1 ≤ C2."""

from pathlib import Path

from hpo import best, run_plan

if __name__ == "__main__":
    plan = run_plan(
        data="digits",
        studies=Path(__file__).parent / "joint_search",
        out="joint-out",
        epochs=5,
        final_seeds=2,
    )
    winner = best(plan)
    print(f"validation macro F1 {winner['value']:.3f} with {winner['params']}")
