//! Where relative paths of a pipeline lead, from wherever it is started, run again and published.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use lmr_pipeline::tensors::sha256;
use lmr_tests::{Finished, Project, fresh_state};

fn project() -> Project {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    project.write("elsewhere/.keep", "");
    project
}

/// Runs the program in another folder of the project.
fn run_in(project: &Project, folder: &str, arguments: &[&str]) -> Finished {
    project.command(arguments).current_dir(project.path().join(folder)).output().unwrap().into()
}

/// Moves a project's pipeline, checkpoint and data into a folder.
fn move_into(project: &Project, folder: &str) {
    std::fs::create_dir_all(project.path().join(folder)).unwrap();
    for name in ["pipeline.toml", "model.safetensors", "datasets"] {
        std::fs::rename(project.path().join(name), project.path().join(folder).join(name)).unwrap();
    }
}

#[test]
fn a_run_far_from_its_pipeline_is_published_and_run_again_from_anywhere() {
    let project = project();
    move_into(&project, "far/away");
    let run = run_in(&project, "elsewhere", &["pipeline", "../far/away/pipeline.toml", "--out", "../runs/one"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let publish = ["publish", "runs/one", "--repo", "someone/tiny", "--dry-run"];
    for (folder, arguments) in
        [(".", &publish[..]), ("runs", &["publish", "one", "--repo", "someone/tiny", "--dry-run"])]
    {
        let published = run_in(&project, folder, arguments);
        assert_eq!(published.code, Some(0), "{}", published.stderr);
    }
    let pipeline = String::from_utf8(project.read("runs/one/publish/lmr.toml")).unwrap();
    assert!(!pipeline.contains("paths-from") && !pipeline.contains("away"), "{pipeline}");
    // The purified model beside it is not the received one.
    let lacking = project.run(&["pipeline", "runs/one/publish/lmr.toml"]);
    assert!(lacking.stderr.contains("there is no file received/model.safetensors; looked in "), "{}", lacking.stderr);
    let received = sha256(&project.read("far/away/model.safetensors"));
    assert!(pipeline.contains(&format!("sha256 = \"{received}\"")), "{pipeline}");
    let again = run_in(&project, "runs", &["pipeline", "one/config.toml", "--plan", "--out", "one"]);
    assert_eq!(again.stdout.matches("would be reused").count(), 10, "{}", again.stderr);
    let again = run_in(&project, "runs", &["pipeline", "one/config.toml", "--out", "two"]);
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    std::fs::remove_dir_all(project.path().join("runs/one/publish")).unwrap();
    assert_eq!(project.digests("runs/one"), project.digests("runs/two"));
}

#[test]
fn the_file_beside_the_pipeline_comes_before_the_one_in_the_working_directory() {
    let project = project();
    move_into(&project, "far");
    let state = fresh_state(2);
    project.write_weights(state);
    let received = |arguments: &[&str]| {
        let run = project.run(&[&["pipeline", "far/short.toml", "--out", "run"], arguments].concat());
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let report: serde_json::Value = serde_json::from_slice(&project.read("run/report.json")).unwrap();
        report["model"]["sha256"].as_str().unwrap().to_owned()
    };
    let text = String::from_utf8(project.read("far/pipeline.toml")).unwrap();
    project.write("far/short.toml", text.split("[[stage]]\nkind = \"estimate\"").next().unwrap());
    assert_eq!(received(&[]), sha256(&project.read("far/model.safetensors")));
    // What is typed means where it is typed.
    let typed = received(&["--set", "model.weights.path=model.safetensors"]);
    assert_eq!(typed, sha256(&project.read("model.safetensors")));
}

#[test]
fn what_is_not_there_was_looked_for() {
    let project = project();
    project.edit("pipeline.toml", "path = \"model.safetensors\"", "path = \"nowhere.safetensors\"");
    project.edit("pipeline.toml", "name = \"tiny\"\nclean", "name = \"tiny\"\nroot = \"pictures\"\nclean");
    let run = run_in(&project, "elsewhere", &["pipeline", "../pipeline.toml"]);
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    for missing in
        ["model.weights.path: there is no file nowhere.safetensors", "data.root: there is no folder pictures"]
    {
        let line = run.stderr.lines().find(|line| line.contains(missing)).unwrap_or(&run.stderr);
        let place = project.path().canonicalize().unwrap();
        assert!(line.contains("and the folders above it, the working directory"), "{line}");
        assert!(line.contains(&place.join("elsewhere").display().to_string()), "{line}");
    }
}
