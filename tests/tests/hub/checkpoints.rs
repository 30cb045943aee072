//! Which files of a repository a checkpoint is made of.

use lmr_pipeline::hub::{HubCheckpoint, HubError, RemoteCheckpoint};
use lmr_plugin::run::Quiet;
use lmr_tests::hub::{Host, Kind};
use rstest::rstest;

use super::{REPO, Scene};

/// What the pickles here are: the beginning of a zip file.
const PICKLE: &str = "PK\x03\x04 and so on";

pub fn get(scene: &Scene, revision: &str, file: Option<&str>, allow: bool) -> Result<HubCheckpoint, HubError> {
    let wanted = RemoteCheckpoint { repo: REPO, revision, file, sha256: None, allow_pickle: allow };
    scene.client().checkpoint(&wanted, &Quiet)
}

fn scene(files: &[(&str, &str)]) -> Scene {
    Scene::with(files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.as_bytes().to_vec())).collect())
}

const INDEX: &str = r#"{"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#;

#[rstest]
#[case::usual(&["model.safetensors", "pytorch_model.bin", "other.safetensors"], "model.safetensors")]
#[case::index(&["model.safetensors.index.json", "one.safetensors", "two.safetensors", "pytorch_model.bin"], "model.safetensors.index.json")]
#[case::torch(&["pytorch_model.bin", "other.safetensors"], "pytorch_model.bin")]
#[case::only_one(&["vgg.pth", "README.md", "old/vgg.pth"], "vgg.pth")]
fn the_file_is_chosen_as_in_a_folder(#[case] files: &[&str], #[case] expected: &str) {
    let content = |file: &str| if file.ends_with(".json") { INDEX } else { file }.as_bytes().to_vec();
    let scene = Scene::with(files.iter().map(|file| ((*file).to_owned(), content(file))).collect());
    // A page each, so that the choice is made among all of them.
    scene.hub.set_page(1);
    let found = get(&scene, "main", None, true).unwrap();
    assert_eq!((found.file.as_str(), found.commit.as_str()), (expected, scene.commit.as_str()));
    assert_eq!(found.to_string(), format!("{REPO}@{}/{expected}", scene.commit));
    // Named and pinned, as the resolved configuration has it, nothing is asked any more; nor is it offline.
    scene.hub.forget();
    assert_eq!(get(&scene, &scene.commit, Some(expected), true).unwrap(), found);
    let offline = RemoteCheckpoint { repo: REPO, revision: "main", file: None, sha256: None, allow_pickle: true };
    assert_eq!(scene.offline().checkpoint(&offline, &Quiet).unwrap(), found);
    assert_eq!(scene.offline().cached_checkpoint(&offline).unwrap(), Some(found));
    assert!(scene.hub.requests().is_empty());
}

#[test]
fn what_lies_beside_it_comes_along() {
    let files: &[(&str, &str)] = &[
        ("sub/model.safetensors.index.json", INDEX),
        ("sub/one.safetensors", "1"),
        ("sub/two.safetensors", "22"),
        ("sub/config.json", "{}"),
        ("config.json", "another"),
        ("sub/large.bin", "not wanted"),
    ];
    let scene = scene(files);
    let found = get(&scene, "main", Some("sub/model.safetensors.index.json"), false).unwrap();
    let beside = |name: &str| std::fs::read(found.path.with_file_name(name)).unwrap();
    assert_eq!((beside("one.safetensors"), beside("two.safetensors")), (b"1".to_vec(), b"22".to_vec()));
    assert_eq!(beside("config.json"), b"{}");
    assert!(!found.path.with_file_name("large.bin").exists());
    // The repository has no `preprocessor_config.json`, which is known from now on, to Python as well.
    let lack = format!("models--some--model/.no_exist/{}/sub/preprocessor_config.json", scene.commit);
    assert!(scene.cache().join(lack).is_file());
    scene.hub.forget();
    get(&scene, "main", Some("sub/model.safetensors.index.json"), false).unwrap();
    assert!(scene.hub.requests().is_empty());
    // One shard is gone: what is left is used, and that one is fetched.
    std::fs::remove_file(found.path.with_file_name("one.safetensors")).unwrap();
    std::fs::remove_dir_all(scene.cache().join("models--some--model/blobs")).unwrap();
    let error = scene
        .offline()
        .checkpoint(
            &RemoteCheckpoint {
                repo: REPO,
                revision: &scene.commit,
                file: Some("sub/model.safetensors.index.json"),
                sha256: None,
                allow_pickle: false,
            },
            &Quiet,
        )
        .unwrap_err()
        .to_string();
    let command = format!("`hf download some/model --revision {}`", scene.commit);
    assert!(
        error.contains("HF_HUB_OFFLINE forbids") && error.contains(&command) && error.contains("set `path`"),
        "{error}"
    );
    get(&scene, "main", Some("sub/model.safetensors.index.json"), false).unwrap();
}

#[test]
fn a_branch_is_followed_only_where_something_is_missing() {
    let scene = scene(&[("model.safetensors", "first")]);
    let first = get(&scene, "main", None, false).unwrap();
    let second = scene.hub.commit(Kind::Model, REPO, [("model.safetensors", "second")]);
    assert_eq!(get(&scene, "main", None, false).unwrap(), first, "the noted commit");
    std::fs::remove_file(scene.cache().join("models--some--model/refs/main")).unwrap();
    let moved = get(&scene, "main", None, false).unwrap();
    assert_eq!((moved.commit.as_str(), std::fs::read(&moved.path).unwrap()), (second.as_str(), b"second".to_vec()));
    assert_eq!(std::fs::read(&first.path).unwrap(), b"first", "the old commit is still there");
}

#[rstest]
#[case::none(&[("README.md", "#")], "has no checkpoint; expected model.safetensors or another .safetensors")]
#[case::only_below(&[("sub/model.safetensors", "1")], "has no checkpoint")]
#[case::several(&[("a.pth", "1"), ("b.pt", "2")], "has 2 checkpoints, a.pth and b.pt among them; name one")]
#[case::above(&[("../../evil.safetensors", "1")], "names the file \"..\", which is outside the repository")]
#[case::absolute(&[("/etc/evil.safetensors", "1")], "names the file \"/etc\", which is outside the repository")]
#[case::backslash(&[("..\\evil.safetensors", "1")], "which is outside the repository")]
#[case::control(&[("a\u{1b}[2J.safetensors", "1")], "names the file \"a\\u{1b}[2J.safetensors\"")]
#[case::shard_above(&[("model.safetensors.index.json", r#"{"weight_map": {"a": "../../../evil"}}"#)], "names the shard \"../../../evil\"; expected a file in the same folder")]
#[case::shard_lacks(&[("model.safetensors.index.json", INDEX)], "`one.safetensors` of model repository some/model")]
#[case::no_index(&[("model.safetensors.index.json", "<html>")], "is no index of safetensors files")]
fn a_repository_without_one_checkpoint_is_refused(#[case] files: &[(&str, &str)], #[case] message: &str) {
    let scene = scene(files);
    let error = get(&scene, "main", None, true).unwrap_err().to_string();
    assert!(error.contains(message) && !error.contains('\u{1b}'), "{error}");
    assert!(
        scene.files().iter().all(|file| file.starts_with("cache/") && !file.contains("evil")),
        "{:?}",
        scene.files()
    );
}

#[rstest]
#[case::by_name("pytorch_model.bin", false)]
#[case::by_content("model.safetensors", true)]
fn a_pickle_must_be_allowed(#[case] name: &str, #[case] downloads: bool) {
    let scene = scene(&[(name, PICKLE)]);
    for file in [None, Some(name)] {
        let error = get(&scene, "main", file, false).unwrap_err();
        assert!(
            matches!(error, HubError::Pickle { .. }) && error.to_string().contains("allow-pickle = true"),
            "{error}"
        );
    }
    let downloaded = scene.hub.requests().iter().any(|request| request.host == Host::Cdn);
    assert_eq!(downloaded, downloads, "a name alone is enough to refuse it");
    assert!(std::fs::read(get(&scene, "main", None, true).unwrap().path).unwrap() == PICKLE.as_bytes());
}

#[test]
fn another_file_than_expected_is_not_downloaded() {
    let scene = scene(&[("model.safetensors", "model")]);
    let zeros = "0".repeat(64);
    let wanted =
        RemoteCheckpoint { repo: REPO, revision: "main", file: None, sha256: Some(&zeros), allow_pickle: false };
    let error = scene.client().checkpoint(&wanted, &Quiet).unwrap_err();
    assert!(matches!(&error, HubError::Other { expected, .. } if *expected == zeros), "{error}");
    assert!(scene.hub.requests().iter().all(|request| request.host == Host::Hub));
}
