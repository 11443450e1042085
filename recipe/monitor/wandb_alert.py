"""Send W&B's own alert for a run: python -m recipe.monitor.wandb_alert PROJECT, with the text in JUSTRL_ALERT_TEXT.

It needs no run object, of which verl's trainer has the one: two writers of a run would disturb each other. recipe.alert
starts it with the run's WANDB_RUN_ID. Offline it sends nothing.

example: WANDB_RUN_ID=1a2b3c4d JUSTRL_ALERT_TEXT="step 12: entropy 0.5" python -m recipe.monitor.wandb_alert justrl
"""

import argparse
import os

import wandb

from common.command import Failure, first_line, run

# What `wandb.Run.alert` sends in the end, as the wandb-core of wandb 0.31.0 has it. Duration is in ns: 0 makes W&B send
# every alert; by default it drops those with the title of one in the last minute.
MUTATION = """
mutation NotifyScriptableRunAlert($entityName: String!, $projectName: String!, $runName: String!, $title: String!,
    $text: String!, $severity: AlertSeverity = INFO, $waitDuration: Duration) {
  notifyScriptableRunAlert(input: {entityName: $entityName, projectName: $projectName, runName: $runName,
      title: $title, text: $text, severity: $severity, waitDuration: $waitDuration}) {
    success
  }
}
"""
TITLE_CHARACTERS = 63


def alert(project: str, run_id: str, text: str) -> None:
    """Send an alert about a run of a project; raises Failure if W&B does not take it."""
    try:
        api = wandb.Api()
        variables = {
            "entityName": api.settings["entity"] or api.default_entity,
            "projectName": project,
            "runName": run_id,
            "title": text[:TITLE_CHARACTERS],
            "text": text,
            "waitDuration": 0,
        }
        answer: dict | None = api._service_api.execute_graphql(
            MUTATION, variables
        )  # the library has no public call for it
    except Exception as error:  # wandb's have no common class
        raise Failure(first_line(error)) from error
    if not ((answer or {}).get("notifyScriptableRunAlert") or {}).get("success"):
        raise Failure("W&B did not take the alert")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", help="W&B's name of the project")
    args = parser.parse_args()
    if wandb.setup().settings.mode in ("online", "shared", "run"):
        alert(args.project, os.environ["WANDB_RUN_ID"], os.environ["JUSTRL_ALERT_TEXT"])


if __name__ == "__main__":
    run(main)
