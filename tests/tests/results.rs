//! Tables of results come from reports: kept, written into a page, and checked there.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use lmr_tests::{Finished, Project};
use rstest::rstest;
use serde_json::Value;

const PAGE: &str = "# Results\n\n<!-- results\nof = \"tiny\"\n-->\n<!-- end of results -->\n\nWritten by hand.\n";

/// A project with a run of `attack.toml` that was kept as `tiny`.
fn project() -> Project {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    done(&project, &["pipeline", "attack.toml", "--out", "runs/tiny"]);
    done(&project, &["results", "add", "runs/tiny", "--results", "kept"]);
    project.write("page.md", PAGE);
    project
}

fn done(project: &Project, arguments: &[&str]) -> Finished {
    let run = project.run(arguments);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    run
}

fn json(project: &Project, name: &str) -> Value {
    serde_json::from_slice(&project.read(name)).unwrap()
}

fn page(project: &Project) -> String {
    String::from_utf8(project.read("page.md")).unwrap()
}

fn results(project: &Project, arguments: &[&str]) -> Finished {
    project.run(&[&["results", "--page", "page.md", "--results", "kept"], arguments].concat())
}

/// The cells of the row that begins with a name.
fn row(page: &str, name: &str) -> Vec<String> {
    let line = page.lines().find(|line| line.starts_with(&format!("| {name} |"))).unwrap();
    line.trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect()
}

fn percent(report: &Value, stage: usize, metric: &str) -> String {
    format!("{:.2}", 100.0 * report["stages"][stage]["outcome"][metric].as_f64().unwrap())
}

#[test]
fn a_table_shows_what_the_report_says_and_nothing_else() {
    let project = project();
    let unwritten = results(&project, &["--check"]);
    assert_eq!((unwritten.code, page(&project).as_str()), (Some(1), PAGE), "checking writes nothing");
    assert!(unwritten.stderr.contains("page.md: other tables than the results give"), "{}", unwritten.stderr);

    assert_eq!(results(&project, &[]).code, Some(0));
    let written = page(&project);
    let report = json(&project, "runs/tiny/report.json");
    let expected = ["acc", "asr", "ta"].map(|metric| percent(&report, 1, metric));
    assert_eq!(row(&written, "evaluate")[1..], expected);
    assert!(
        written.contains("Seed 0 of `attack`: resnet18") && written.ends_with("\n\nWritten by hand.\n"),
        "{written}"
    );
    assert_eq!(results(&project, &["--check"]).code, Some(0));
    assert_eq!((results(&project, &[]).code, page(&project)), (Some(0), written.clone()));

    // Whoever types a figure is found out, and so is whoever keeps another run without writing the tables.
    project.write("page.md", written.replace(&expected[0], "99.99"));
    assert_eq!(results(&project, &["--check"]).code, Some(1));
    project.write("page.md", &written);
    done(&project, &["pipeline", "attack.toml", "--set", "stage.attack.training.epochs=1", "--out", "runs/tiny"]);
    done(&project, &["results", "add", "runs/tiny", "--results", "kept"]);
    assert_eq!(results(&project, &["--check"]).code, Some(1));
}

#[test]
fn what_is_kept_is_small_and_complete_for_tables() {
    let project = project();
    let (kept, report) = (json(&project, "kept/tiny.json"), json(&project, "runs/tiny/report.json"));
    let (kept_stages, stages) = (kept[0]["stages"].as_array().unwrap(), report["stages"].as_array().unwrap());
    for (kept, stage) in kept_stages.iter().zip(stages) {
        assert_eq!((&kept["name"], &kept["files"]), (&stage["name"], &stage["files"]));
        for (key, value) in stage["outcome"].as_object().unwrap() {
            let expected = if value.is_array() || value.is_object() { &Value::Null } else { value };
            assert_eq!(&kept["outcome"][key], expected, "{key}");
        }
    }
    assert!(stages[0]["outcome"]["epochs"].is_array(), "something was left out");
    assert_eq!((kept_stages.len(), &kept[0]["run"], &kept[0]["model"]), (2, &report["run"], &report["model"]));
}

/// Seeds of a repeated run are kept together; the table has their median and worst.
#[test]
fn seeds_are_summed_up() {
    let project = project();
    done(&project, &["repeat", "attack.toml", "--seeds", "0-2", "--out", "seeds"]);
    done(&project, &["results", "add", "seeds", "--results", "kept"]);
    project.write("page.md", PAGE.replace("\"tiny\"", "\"seeds\""));
    done(&project, &["results", "--page", "page.md", "--results", "kept"]);
    let mut accuracies: Vec<f64> = (0..3)
        .map(|seed| json(&project, &format!("seeds/seed-{seed}/report.json")))
        .map(|report| report["stages"][1]["outcome"]["acc"].as_f64().unwrap())
        .collect();
    accuracies.sort_by(f64::total_cmp);
    let expected = format!("{:.2} ({:.2})", 100.0 * accuracies[1], 100.0 * accuracies[0]);
    assert_eq!(row(&page(&project), "evaluate")[1], expected);
    assert!(page(&project).contains("Seeds 0 to 2 of `attack`"), "{}", page(&project));

    // Several results: a row each, from the lowest to the highest.
    project.write("page.md", PAGE.replace("\"tiny\"", "[\"tiny\", \"seeds\"]\nmeasured = [\"evaluate\"]"));
    done(&project, &["results", "--page", "page.md", "--results", "kept"]);
    let report = json(&project, "runs/tiny/report.json");
    let first = |metric: &str| format!("{:.1}", 100.0 * report["stages"][1]["outcome"][metric].as_f64().unwrap());
    let cells = row(&page(&project), "tiny");
    assert_eq!((&cells[1], &cells[3]), (&["acc", "asr", "ta"].map(first).join(" / "), &"seed 0".to_string()));
    let ends = [accuracies[0], accuracies[2]].map(|acc| format!("{:.1}", 100.0 * acc));
    let range = if ends[0] == ends[1] { ends[0].clone() } else { ends.join("–") };
    assert!(row(&page(&project), "seeds")[1].starts_with(&format!("{range} / ")), "{}", page(&project));
}

#[rstest]
#[case::unknown("of = \"tiny\"", "of = \"tony\"", "page.md: line 3: ")]
#[case::unknown_key("of = \"tiny\"", "off = \"tiny\"", "unknown field `off`")]
#[case::unknown_row(
    "of = \"tiny\"",
    "of = \"tiny\"\nmeasured = [\"evalute\"]",
    "nothing called `evalute` was measured; did you mean `evaluate`?"
)]
#[case::outside("of = \"tiny\"", "of = \"../tiny\"", "expected a name of letters")]
#[case::no_names("of = \"tiny\"", "of = []", "of: expected at least one name")]
#[case::no_end("<!-- end of results -->", "", "line 3: `<!-- results` without `<!-- end of results -->`")]
fn a_page_that_asks_for_something_else_is_refused(#[case] from: &str, #[case] to: &str, #[case] expected: &str) {
    let project = project();
    project.edit("page.md", from, to);
    let before = page(&project);
    let run = results(&project, &[]);
    assert_eq!((run.code, page(&project)), (Some(2), before), "{}", run.stderr);
    assert!(run.stderr.contains(expected), "{}", run.stderr);
}

#[test]
fn what_is_no_run_is_refused() {
    let project = project();
    let refused = |arguments: &[&str], expected: &str| {
        let run = project.run(&[&["results", "add"], arguments, &["--results", "kept"]].concat());
        assert_eq!(run.code, Some(2), "{}", run.stderr);
        assert!(run.stderr.contains(expected), "{}", run.stderr);
    };
    refused(&["datasets"], "datasets: expected a report.json, or folders seed-… with one each");
    refused(&["nowhere"], "nowhere: ");
    refused(&["runs/tiny", "--name", "../tiny"], "expected a name of letters");
    project.write("runs/tiny/report.json", "{");
    refused(&["runs/tiny"], "runs/tiny/report.json: EOF");
}
