"""The whole report: six studies, each inheriting the winner before it, and the test set at the end.

One epoch a run for a quick look; without `epochs` it is the report's eleven.
"""

from hpo import final_result, run_plan

if __name__ == "__main__":
    plan = run_plan(data="digits", out="report-out", epochs=1)
    for name in plan.specs:
        print(f"{name}: {plan.decision(name).text}")
    test = final_result(plan)["test"]
    print(f"test set: macro F1 {test['macro_f1']:.3f}, accuracy {test['accuracy']:.3f}")
