//! Against a cache made here.

use std::collections::HashMap;
use std::time::Duration;

use lmr_plugin::run::Quiet;
use rstest::rstest;
use tempfile::TempDir;

use super::*;

pub(super) const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";
pub(super) const FILE: RemoteFile<'_> = RemoteFile { path: "data/t.parquet", sha256: None, max_bytes: 1000 };
pub(super) const FILES: RemoteFiles<'_> =
    RemoteFiles { kind: RepoKind::Dataset, repo: "some/set", revision: REVISION, files: &[FILE] };
pub(super) const MAIN: RemoteFiles<'_> = RemoteFiles { revision: "main", ..FILES };
/// What to do where downloads are off.
const REMEDY: &str = if cfg!(feature = "hub") { "unset HF_HUB_OFFLINE" } else { "build it with the feature `hub`" };
pub(super) const CONTENT: &[u8] = b"the true bytes";

impl Hub {
    /// One file at a commit.
    pub(super) fn dataset_file(&self, file: &RemoteFile) -> Result<HubFile, HubError> {
        let found = self.get(&RemoteFiles { files: &[*file], ..FILES })?;
        assert_eq!(found.commit, REVISION);
        Ok(found.files[0].clone())
    }

    pub(super) fn get(&self, wanted: &RemoteFiles) -> Result<HubFiles, HubError> {
        self.files(wanted, &Quiet)
    }
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    crate::tensors::sha256(bytes)
}

pub(super) fn hub(variables: &[(&str, &str)]) -> Hub {
    let variables: HashMap<&str, &str> = variables.iter().copied().collect();
    let hub =
        Hub::from_variables(|name| variables.get(name).map(|value| (*value).to_owned()), Some("/home/user".into()));
    let short = Duration::from_millis(1);
    hub.with_patience(Patience { delay: short, tries: 3, ..Patience::default() })
}

#[rstest]
#[case(&[], "/home/user/.cache/huggingface/hub")]
#[case(&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub")]
#[case(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")], "/h/hub")]
#[case(&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old")]
#[case(&[("HF_HUB_CACHE", "/c"), ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HOME", "/h")], "/c")]
#[case(&[("HF_HOME", "~/hf")], "/home/user/hf/hub")]
#[case(&[("HF_HOME", "$BASE/${NAME}_1"), ("BASE", "/b"), ("NAME", "n")], "/b/n_1/hub")]
#[case(&[("HF_HUB_CACHE", "~/$NAME/$UNSET"), ("NAME", "n")], "/home/user/n/$UNSET")]
#[case(&[("HF_HUB_CACHE", "/a/~/b")], "/a/~/b")]
#[case(&[("XDG_CACHE_HOME", "~/x")], "/home/user/x/huggingface/hub")]
#[case(&[("HF_HUB_CACHE", ""), ("HF_HOME", "/h\n")], "/h/hub")]
fn cache_follows_the_environment(#[case] variables: &[(&str, &str)], #[case] expected: &str) {
    assert_eq!(hub(variables).cache, PathBuf::from(expected));
}

#[rstest]
#[case("1", true)]
#[case("true", true)]
#[case("0", false)]
#[case("", false)]
fn offline_follows_the_environment(#[case] value: &str, #[case] expected: bool) {
    assert_eq!(hub(&[("HF_HUB_OFFLINE", value)]).offline, expected || !cfg!(feature = "hub"));
}

#[test]
fn token_is_trimmed_and_hidden() {
    let with_token = hub(&[("HF_TOKEN", "hf_secret\n")]);
    assert_eq!(with_token.token.as_deref(), Some("hf_secret"));
    assert!(!format!("{with_token:?}").contains("secret"));
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
    assert_eq!(hub(&[("HF_HOME", &folder.path().to_string_lossy())]).token.as_deref(), Some("hf_file"));
}

/// A cache with one file, plain or as a link to its blob.
pub(super) fn cache(content: &[u8], link: bool) -> TempDir {
    let folder = TempDir::new().unwrap();
    let repository = folder.path().join("datasets--some--set");
    let data = repository.join("snapshots").join(REVISION).join("data");
    std::fs::create_dir_all(&data).unwrap();
    if link {
        let blob = repository.join("blobs").join(sha256(CONTENT));
        std::fs::create_dir_all(repository.join("blobs")).unwrap();
        std::fs::write(&blob, content).unwrap();
        std::os::unix::fs::symlink(&blob, data.join("t.parquet")).unwrap();
    } else {
        std::fs::write(data.join("t.parquet"), content).unwrap();
    }
    folder
}

pub(super) fn offline(folder: &TempDir) -> Hub {
    hub(&[("HF_HUB_CACHE", &folder.path().to_string_lossy()), ("HF_HUB_OFFLINE", "1")])
}

#[rstest]
#[case::plain(false)]
#[case::linked(true)]
fn cached_file_is_used(#[case] link: bool) {
    let folder = cache(CONTENT, link);
    let found = offline(&folder).dataset_file(&FILE).unwrap();
    assert_eq!((found.sha256, found.bytes), (sha256(CONTENT), CONTENT.len() as u64));
    assert!(found.path.starts_with(folder.path()));
}

#[test]
fn cached_file_is_verified() {
    let poisoned = cache(b"503", true);
    let error = offline(&poisoned).dataset_file(&FILE).unwrap_err().to_string();
    assert!(error.contains("is damaged") && error.contains(&sha256(b"503")) && error.contains("remove it"), "{error}");
    let sound = cache(CONTENT, false);
    let wanted = sha256(b"other");
    let error = offline(&sound).dataset_file(&RemoteFile { sha256: Some(&wanted), ..FILE }).unwrap_err();
    assert!(matches!(error, HubError::Digest { expected, .. } if expected == wanted));
    // Somebody's cache is theirs: nothing in it is removed for being wrong.
    assert!(offline(&sound).dataset_file(&FILE).is_ok());
}

#[test]
fn missing_file_says_what_to_do() {
    let folder = TempDir::new().unwrap();
    let error = offline(&folder).dataset_file(&FILE).unwrap_err().to_string();
    for part in [
        "`data/t.parquet` of data set repository some/set at 0123456789abcdef0123456789abcdef01234567 is missing",
        "datasets--some--set/snapshots/0123456789abcdef0123456789abcdef01234567/data/t.parquet",
        REMEDY,
        "hf download --repo-type dataset some/set data/t.parquet --revision 0123456789abcdef0123456789abcdef01234567",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[rstest]
#[case::path(RemoteFiles { files: &[FILE, RemoteFile { path: "../../../../etc/passwd", ..FILE }], ..FILES })]
#[case::absolute(RemoteFiles { files: &[RemoteFile { path: "/etc/passwd", ..FILE }], ..FILES })]
#[case::repo(RemoteFiles { repo: "../x", ..FILES })]
#[case::revision(RemoteFiles { revision: "../../x", ..FILES })]
#[case::option(RemoteFiles { revision: "--force", ..FILES })]
#[case::nothing(RemoteFiles { files: &[], ..MAIN })]
fn hostile_names_are_refused(#[case] wanted: RemoteFiles<'_>) {
    assert!(matches!(hub(&[]).get(&wanted), Err(HubError::Name { .. })));
}

/// Notes in the cache what `main` is.
pub(super) fn note(folder: &TempDir, text: &str) -> PathBuf {
    let refs = folder.path().join("datasets--some--set/refs");
    std::fs::create_dir_all(&refs).unwrap();
    std::fs::write(refs.join("main"), text).unwrap();
    refs.join("main")
}

#[rstest]
#[case::empty("")]
#[case::name("main")]
#[case::short("0123456789abcdef0123456789abcdef0123456")]
#[case::capitals("0123456789ABCDEF0123456789abcdef01234567")]
#[case::path("../../../../../../../../../../../../../..")]
fn malformed_note_is_refused(#[case] text: &str) {
    let folder = cache(CONTENT, true);
    let path = note(&folder, text);
    let error = offline(&folder).get(&MAIN).unwrap_err().to_string();
    let start = format!("{}: found {text:?}, expected a commit", path.display());
    assert!(error.starts_with(&start) && error.contains("remove it"), "{error}");
}

#[test]
fn offline_says_where_the_commit_was_looked_for() {
    let folder = TempDir::new().unwrap();
    let file = RemoteFile { path: "data/u.parquet", ..FILE };
    let wanted = RemoteFiles { files: &[FILE, file], ..MAIN };
    let error = offline(&folder).get(&wanted).unwrap_err().to_string();
    let path = folder.path().join("datasets--some--set/refs/main").display().to_string();
    let command = "`hf download --repo-type dataset some/set data/t.parquet data/u.parquet --revision main`";
    for part in [
        "`data/t.parquet` of data set repository some/set at main is missing",
        &format!("looked for the commit in {path}, and"),
        REMEDY,
        command,
    ] {
        assert!(error.contains(part), "{error}");
    }
    // One of the two files is there, so only the other is missing.
    let folder = cache(CONTENT, true);
    let path = note(&folder, REVISION).display().to_string();
    let error = offline(&folder).get(&wanted).unwrap_err().to_string();
    let place = format!("snapshots/{REVISION}/data/u.parquet (the commit in {path})");
    for part in ["`data/u.parquet` of", &place, command] {
        assert!(error.contains(part), "{error}");
    }
}

/// What is in the cache can be used without the feature `hub`; what is not is refused, naming the feature.
#[cfg(not(feature = "hub"))]
#[test]
fn a_build_without_downloads_says_so() {
    let folder = cache(CONTENT, true);
    let here = hub(&[("HF_HUB_CACHE", &folder.path().to_string_lossy())]);
    assert!(here.is_offline() && here.check_build(&FILES).is_ok() && here.get(&FILES).is_ok());
    let gone = RemoteFiles { revision: "v1", ..FILES };
    let error = here.check_build(&gone).unwrap_err().to_string();
    assert!(error.contains("this build of LMR cannot download; build it with the feature `hub`"), "{error}");
    assert_eq!(here.get(&gone).unwrap_err().to_string(), error);
}
