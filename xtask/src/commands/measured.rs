//! What runs measured, as the cells of a table for the terminal or for a Markdown page.

use anyhow::Context;
use comfy_table::{CellAlignment, Table};
use lmr_pipeline::report::{Measurement, Report, percent};

use super::table;

/// How many forms of a model a screen shows.
const SHOWN: usize = 6;

/// A table whose first column is text and whose others are numbers.
pub struct Measured {
    /// The titles of the columns.
    pub header: Vec<String>,
    /// The cells.
    pub rows: Vec<Vec<String>>,
}

impl Measured {
    /// Everything that a run measured, a row each.
    pub fn of(report: &Report) -> Self {
        Self::rows(&report.measurements())
    }

    /// What fits on a screen: without stages that measured many forms, of which a sentence names the worst.
    pub fn short(report: &Report) -> Self {
        let stages = report.stages.iter().map(Measurement::all).filter(|forms| forms.len() <= SHOWN);
        Self::rows(&stages.flatten().collect::<Vec<_>>())
    }

    fn rows(measurements: &[Measurement<'_>]) -> Self {
        // Most triggers know no decoy.
        let columns = if measurements.iter().any(|m| m.decoy_acc.is_some()) { 5 } else { 4 };
        let row = |m: &Measurement<'_>| {
            let cells = [m.name.to_string(), percent(Some(m.acc)), percent(m.asr), percent(m.ta), percent(m.decoy_acc)];
            cells.into_iter().take(columns).collect()
        };
        let header = ["model", "ACC %", "ASR %", "TA %", "decoy ACC %"];
        Self {
            header: header.into_iter().take(columns).map(String::from).collect(),
            rows: measurements.iter().map(row).collect(),
        }
    }

    /// Median and worst over the seeds of everything that runs of one pipeline measured.
    pub fn over(reports: &[Report]) -> anyhow::Result<Self> {
        let first = reports.first().context("no runs")?;
        let mut rows = Vec::new();
        for (at, measurement) in first.measurements().iter().enumerate() {
            let column = |pick: fn(&Measurement<'_>) -> Option<f64>| -> anyhow::Result<Vec<f64>> {
                let mut values = Vec::new();
                for report in reports {
                    let measurements = report.measurements();
                    let same = measurements.get(at).filter(|other| other.name == measurement.name);
                    values.extend(pick(same.context("the runs differ in their stages")?));
                }
                values.sort_by(f64::total_cmp);
                Ok(values)
            };
            let cell = |values: Vec<f64>, worst: fn(&[f64]) -> Option<&f64>| {
                format!("{} ({})", percent(median(&values)), percent(worst(&values).copied()))
            };
            rows.push(vec![
                measurement.name.to_string(),
                cell(column(|m| Some(m.acc))?, <[f64]>::first),
                cell(column(|m| m.asr)?, <[f64]>::last),
                cell(column(|m| m.ta)?, <[f64]>::first),
            ]);
        }
        let header = ["model", "ACC % median (lowest)", "ASR % median (highest)", "TA % median (lowest)"];
        Ok(Self { header: header.map(String::from).into(), rows })
    }

    /// For the terminal.
    pub fn table(self) -> Table {
        let mut table = table(self.header.iter().map(String::as_str));
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.add_rows(self.rows);
        table
    }

    /// For a Markdown page.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | ").replace('\n', " "));
        let rule = format!("|---|{}\n", "---:|".repeat(self.header.len().saturating_sub(1)));
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        line(&self.header) + &rule + &rows
    }
}

/// The middle of ascending values, the mean of two middle ones.
pub fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len().checked_sub(1)? / 2;
    let values = &sorted[middle..=sorted.len() / 2];
    Some(values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_even_and_no_values() {
        assert_eq!(median(&[1.0, 2.0, 9.0]), Some(2.0));
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), Some(3.0));
        assert_eq!(median(&[5.0]), Some(5.0));
        assert_eq!(median(&[]), None);
    }
}
