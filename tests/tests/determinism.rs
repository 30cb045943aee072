//! The same configuration and seed give the same bytes, whatever the number of threads.

use lmr_tests::Project;

fn project() -> Project {
    Project::new(env!("CARGO_BIN_EXE_lmr-under-test"))
}

#[test]
fn threads_and_repetition_change_nothing() {
    let project = project();
    for (config, folder) in [("attack.toml", "attack"), ("pipeline.toml", "purify")] {
        for threads in ["1", "2", "3"] {
            let out = format!("{folder}-{threads}");
            let run = project.run(&["pipeline", config, "--threads", threads, "--out", &out]);
            assert_eq!(run.code, Some(0), "{}", run.stderr);
        }
        let one = project.digests(&format!("{folder}-1"));
        assert!(one.keys().any(|file| file.ends_with("model.safetensors")));
        assert_eq!(one, project.digests(&format!("{folder}-2")));
        assert_eq!(one, project.digests(&format!("{folder}-3")));
    }
}

#[test]
fn the_seed_decides() {
    let project = project();
    for seed in ["1", "2"] {
        let set = format!("run.seed={seed}");
        let run = project.run(&["pipeline", "attack.toml", "--set", &set, "--out", seed]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
    }
    let weights = std::path::Path::new("00-attack/model.safetensors");
    assert_ne!(project.digests("1")[weights], project.digests("2")[weights]);
}
