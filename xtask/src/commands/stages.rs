//! `lmr stages`.

use std::fmt::Write as _;
use std::io::Write as _;

use lmr_pipeline::schema::{self, Entry};

/// Prints the reference.
pub fn run() -> anyhow::Result<()> {
    let mut page = String::from("# Stages\n");
    schema::stages().iter().try_for_each(|entry| describe(&mut page, entry))?;
    page.push_str("\n# Triggers\n");
    schema::triggers().iter().try_for_each(|entry| describe(&mut page, entry))?;
    std::io::stdout().write_all(page.as_bytes())?;
    Ok(())
}

fn describe(page: &mut String, entry: &Entry) -> std::fmt::Result {
    writeln!(page, "\n## {}\n\n{}.", entry.kind, entry.summary)?;
    for (what, findings) in [("Needs", &entry.needs), ("Gives", &entry.gives)] {
        if !findings.is_empty() {
            writeln!(page, "{what}: {}.", findings.join(", "))?;
        }
    }
    if !entry.options.is_empty() {
        writeln!(page)?;
    }
    for option in &entry.options {
        let range = option.range.as_ref().map(|range| format!(" ({range})")).unwrap_or_default();
        writeln!(page, "- `{}` = {}{range}: {}", option.key, option.default, option.description)?;
    }
    Ok(())
}
