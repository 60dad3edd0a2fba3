//! What `shoal configure` did, or would do.

use std::path::PathBuf;

use serde::Serialize;

use super::edit::{Action, Plan};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) files: Vec<FileReport>,
    /// What will keep the client from using the daemon, with the fix.
    pub(super) warnings: Vec<String>,
    /// What is left to do, and what there is to know.
    pub(super) next: Vec<String>,
    pub(super) dry_run: bool,
    pub(super) removed: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct FileReport {
    pub(super) path: PathBuf,
    pub(super) action: Action,
    /// Where the file of before is kept.
    pub(super) backup: Option<PathBuf>,
    /// What would change, as `diff -u` tells it; only of a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) diff: Option<String>,
}

impl Report {
    pub(super) fn new(plans: Vec<Plan>, dry_run: bool, removed: bool) -> Self {
        let files = plans.into_iter().map(|plan| FileReport {
            backup: plan.kept_backup(),
            diff: plan.diff().filter(|_| dry_run),
            path: plan.path,
            action: plan.action,
        });
        Self { files: files.collect(), warnings: Vec::new(), next: Vec::new(), dry_run, removed }
    }

    /// Whether any file is (or would be) another one than before.
    pub(super) fn is_change(&self) -> bool {
        self.files.iter().any(|file| file.action != Action::Unchanged)
    }
}

pub(super) fn text(report: &Report) -> String {
    let mut lines = Vec::new();
    if report.files.is_empty() {
        lines.push("no file mentions the daemon: nothing to do".to_owned());
    }
    for file in &report.files {
        let path = file.path.display();
        lines.push(match (file.action, report.dry_run) {
            (Action::Created, false) => format!("wrote {path}"),
            (Action::Created, true) => format!("would write {path}"),
            (Action::Updated, false) => format!("updated {path}"),
            (Action::Updated, true) => format!("would update {path}"),
            (Action::Merged, false) => format!("put the daemon into {path}, before the other mirrors"),
            (Action::Merged, true) => format!("would put the daemon into {path}, before the other mirrors"),
            (Action::Unchanged, _) if report.removed => format!("{path} does not mention the daemon: nothing to do"),
            (Action::Unchanged, _) => format!("{path} is as it should be"),
            (Action::Removed, false) => format!("removed {path}"),
            (Action::Removed, true) => format!("would remove {path}"),
            (Action::Restored, false) => format!("restored {path}"),
            (Action::Restored, true) => format!("would restore {path}"),
        });
        if let Some(backup) = &file.backup {
            let kept = if report.dry_run { "would be" } else { "is" };
            lines.push(format!("  the file of before {kept} kept as {}", backup.display()));
        }
        if let Some(diff) = &file.diff {
            lines.push(diff.trim_end().to_owned());
        }
    }
    for warning in &report.warnings {
        lines.push(format!("warning: {warning}"));
    }
    lines.extend(report.next.iter().cloned());
    lines.join("\n")
}
