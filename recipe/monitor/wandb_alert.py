"""Sends W&B's own alert for a run: what recipe.alert starts, with WANDB_PROJECT, WANDB_RUN_ID and JUSTRL_ALERT_TEXT.

It needs no run object, of which verl's trainer has the one: two writers of a run would disturb each other. Offline it
sends nothing.
"""

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


def main() -> None:
    if wandb.setup().settings.mode not in ("online", "shared", "run"):
        return
    text = os.environ["JUSTRL_ALERT_TEXT"]
    try:
        api = wandb.Api()
        variables = {
            "entityName": api.settings["entity"] or api.default_entity,
            "projectName": api.settings["project"],
            "runName": os.environ["WANDB_RUN_ID"],
            "title": text[:TITLE_CHARACTERS],
            "text": text,
            "waitDuration": 0,
        }
        answer: dict | None = api._service_api.execute_graphql(MUTATION, variables)  # wandb has no public call for it
    except Exception as error:  # wandb's have no common class
        raise Failure(first_line(error)) from error
    if not ((answer or {}).get("notifyScriptableRunAlert") or {}).get("success"):
        raise Failure("W&B did not take the alert")


if __name__ == "__main__":
    run(main)
