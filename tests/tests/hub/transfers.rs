//! Downloads that are interrupted, watched, or made twice at a time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lmr_pipeline::hub::{HubError, Patience, RemoteFile, RemoteFiles, RepoKind};
use lmr_pipeline::tensors::sha256;
use lmr_plugin::run::{Event, Observer, Quiet};
use lmr_tests::hub::{Answer, Delivery, Effect, Fault, Request};

use super::{FILE, REPO, Scene, content};

/// From where on the file was asked for, request by request.
fn starts(transfers: &[Request]) -> Vec<usize> {
    let start = |range: &str| range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
    transfers.iter().map(|request| request.header("range").map_or(0, start)).collect()
}

#[test]
fn a_cut_transfer_goes_on_where_it_was() {
    let scene = Scene::new();
    scene.hub.inject(Fault::new("/blobs/", Effect::Deliver(Delivery::Cut(500_000))).times(2));
    let found = scene.get(&scene.client()).unwrap();
    scene.assert_cached(&found);
    assert_eq!(starts(&scene.transfers()), [0, 500_000, 1_000_000], "no byte twice");
}

#[test]
fn the_next_run_goes_on_too() {
    let scene = Scene::new();
    scene.hub.inject(Fault::new("/blobs/", Effect::Deliver(Delivery::Cut(500_000))).times(1));
    let once = scene.client().with_patience(Patience { tries: 1, ..Patience::default() });
    assert!(matches!(scene.get(&once), Err(HubError::Download { .. })));
    scene.assert_nothing_to_use();
    let found = scene.get(&scene.client()).unwrap();
    scene.assert_cached(&found);
    assert_eq!(starts(&scene.transfers()), [0, 500_000]);
}

/// What is left from before is only believed if the whole file is right.
#[test]
fn a_partial_file_of_something_else_is_dropped() {
    let scene = Scene::new();
    let blobs = scene.cache().join("models--some--model/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    for (left, expected) in [(1000, vec![1000, 0]), (content().len(), vec![0]), (2_000_000, vec![0])] {
        std::fs::write(blobs.join(format!("{}.incomplete", sha256(&content()))), vec![7; left]).unwrap();
        scene.hub.forget();
        let found = scene.get(&scene.client()).unwrap();
        scene.assert_cached(&found);
        assert_eq!(starts(&scene.transfers()), expected, "{left}");
        std::fs::remove_dir_all(scene.cache().join("models--some--model/snapshots")).unwrap();
        std::fs::remove_file(blobs.join(sha256(&content()))).unwrap();
    }
}

/// A blob that another commit left, damaged since, is not believed either.
#[test]
fn a_blob_is_verified_before_it_is_linked() {
    let scene = Scene::new();
    let blobs = scene.cache().join("models--some--model/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    for (there, transfers) in [(content(), 0), (vec![0; content().len()], 1)] {
        std::fs::write(blobs.join(sha256(&content())), there).unwrap();
        let found = scene.get(&scene.client()).unwrap();
        scene.assert_cached(&found);
        assert_eq!(scene.transfers().len(), transfers);
        std::fs::remove_dir_all(scene.cache().join("models--some--model/snapshots")).unwrap();
    }
}

/// Notes what it is shown, and stops after so many reports.
struct Watcher {
    seen: Mutex<Vec<(String, usize, usize)>>,
    stop_after: usize,
    asked: AtomicUsize,
}

impl Watcher {
    fn new(stop_after: usize) -> Self {
        Self { seen: Mutex::default(), stop_after, asked: AtomicUsize::new(0) }
    }
}

impl Observer for Watcher {
    fn event(&self, event: &Event<'_>) {
        if let Event::Progress { phase, done, total, unit } = event {
            assert_eq!(*unit, "byte");
            self.seen.lock().unwrap().push(((*phase).to_owned(), *done, *total));
            self.asked.store(self.seen.lock().unwrap().len(), Ordering::SeqCst);
        }
    }

    fn cancelled(&self) -> bool {
        self.asked.load(Ordering::SeqCst) >= self.stop_after
    }
}

#[test]
fn progress_is_reported_and_a_stop_keeps_what_came() {
    let scene = Scene::new();
    let slow = Effect::Deliver(Delivery::Trickle(100_000, Duration::from_millis(40)));
    scene.hub.inject(Fault::new("/blobs/", slow));
    let stopping = Watcher::new(3);
    assert!(matches!(scene.get_watched(&scene.client(), &stopping), Err(HubError::Interrupted)));
    scene.assert_nothing_to_use();
    let watcher = Watcher::new(usize::MAX);
    let found = scene.get_watched(&scene.client(), &watcher).unwrap();
    scene.assert_cached(&found);
    let came = starts(&scene.transfers())[1];
    assert!(came > 0, "the second run goes on");
    let seen = watcher.seen.into_inner().unwrap();
    assert!(seen.iter().all(|(file, _, total)| file == FILE && *total == content().len()), "{seen:?}");
    assert!(seen.len() > 2 && seen.is_sorted_by_key(|(_, done, _)| *done), "{seen:?}");
    assert_eq!((seen.first().unwrap().1, seen.last().unwrap().1), (came, content().len()));
}

#[test]
fn of_two_that_want_a_file_one_downloads() {
    let scene = Scene::new();
    let slow = Effect::Deliver(Delivery::Trickle(100_000, Duration::from_millis(20)));
    scene.hub.inject(Fault::new("/blobs/", slow));
    let found: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(|| scene.get(&scene.client()).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(found[0], found[1]);
    scene.assert_cached(&found[0]);
    assert_eq!(scene.transfers().len(), 1);
}

/// The Hub answers for an old name with a redirect to the new one.
#[test]
fn a_renamed_repository_is_found() {
    let scene = Scene::new();
    let to = format!("/{REPO}/resolve/{}/{FILE}", scene.commit);
    scene.hub.inject(Fault::new("/old/name/resolve/", Effect::Answer(Answer::redirect(&to))));
    let files = [RemoteFile { path: FILE, sha256: None, max_bytes: 4 << 30 }];
    let wanted = RemoteFiles { kind: RepoKind::Model, repo: "old/name", revision: &scene.commit, files: &files };
    let found = scene.client().files(&wanted, &Quiet).unwrap();
    assert_eq!(found.files[0].sha256, sha256(&content()));
}

/// Whoever may not write may still read.
#[cfg(unix)]
#[test]
fn a_cache_that_is_read_only_works_for_what_is_there() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new();
    let found = scene.get(&scene.client()).unwrap();
    let set = |mode| {
        for folder in [".", "models--some--model", "models--some--model/blobs"] {
            std::fs::set_permissions(scene.cache().join(folder), std::fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    set(0o555);
    let again = scene.get_watched(&scene.client(), &Quiet);
    set(0o755);
    assert_eq!(again.unwrap(), found);
}
