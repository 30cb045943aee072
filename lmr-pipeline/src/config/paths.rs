//! Where relative paths of a pipeline lead: from its file, so that it works wherever it is started.

use std::path::{Component, Path, PathBuf};

use toml::{Table, Value};

/// The keys of a pipeline that are paths.
pub const PATH_KEYS: &[&[&str]] =
    &[&["model", "weights", "path"], &["data", "root"], &["trigger", "path"], &["trigger", "mask"]];

/// The folders in which a relative path is looked up, first choice first.
#[derive(Clone, Debug, Default)]
pub struct SearchPath {
    /// Those of `run.paths-from`, then the pipeline file's own; with each of them all folders above it.
    folders: Vec<PathBuf>,
    /// The working directory, which comes last.
    here: Option<PathBuf>,
}

impl SearchPath {
    /// That of a pipeline file whose `run.paths-from` has these folders.
    pub fn new(file: &Path, from: &[PathBuf]) -> Self {
        // Folders above `a/../b` are none of `a`.
        let plain = |path: PathBuf| match path.components().any(|part| part == Component::ParentDir) {
            true => path.canonicalize().unwrap_or(path),
            false => path,
        };
        let own = std::path::absolute(file).ok().and_then(|file| Some(plain(file.parent()?.to_owned())));
        let given = own.iter().flat_map(|own| from.iter().map(|folder| plain(own.join(folder))));
        Self { folders: given.chain(own.clone()).collect(), here: std::env::current_dir().ok() }
    }

    /// Where a path leads, if anywhere: below the working directory, relative to it, as people know the file.
    pub fn locate(&self, path: &Path) -> Option<PathBuf> {
        let found = self.absolute(path)?;
        let below = self
            .here
            .as_deref()
            .and_then(|here| found.strip_prefix(here).ok())
            .filter(|below| below.components().count() > 0);
        Some(below.filter(|_| path.is_relative()).map(Path::to_owned).unwrap_or(found))
    }

    /// As [`SearchPath::locate`], with words for what was tried where there is nothing.
    pub fn find(&self, path: &Path) -> Result<PathBuf, String> {
        self.locate(path).ok_or_else(|| self.tried(path))
    }

    fn absolute(&self, path: &Path) -> Option<PathBuf> {
        self.below_file(path).or_else(|| Some(self.here.as_ref()?.join(path)).filter(|found| found.exists()))
    }

    /// Where a path leads without the working directory.
    fn below_file(&self, path: &Path) -> Option<PathBuf> {
        let folders = self.folders.iter().flat_map(|folder| folder.ancestors());
        folders.map(|folder| folder.join(path)).find(|found| found.exists())
    }

    /// Words for where a path was looked up, to follow "there is no file …".
    pub fn tried(&self, path: &Path) -> String {
        if path.is_absolute() {
            return String::new();
        }
        let folders: Vec<String> =
            self.folders.iter().map(|folder| format!("{} and the folders above it", folder.display())).collect();
        let here = self.here.as_ref().map(|here| format!(", the working directory {}", here.display()));
        format!("; looked in {}{}", folders.join(", "), here.unwrap_or_default())
    }

    /// What `run.paths-from` in a file in `folder` has to be, so that these paths lead there where they lead here: nothing
    /// where they do by themselves.
    pub fn seen_from(&self, folder: &Path, paths: &[PathBuf]) -> Vec<PathBuf> {
        let real = |found: Option<PathBuf>| found.and_then(|found| found.canonicalize().ok());
        let wanted: Vec<_> = paths.iter().map(|path| real(self.absolute(path))).collect();
        let own = std::path::absolute(folder).ok();
        let serve = |folders: &&[PathBuf]| {
            let search = Self { folders: folders.iter().chain(&own).cloned().collect(), here: None };
            paths.iter().map(|path| real(search.below_file(path))).eq(wanted.iter().cloned())
        };
        let all: Vec<PathBuf> = self.folders.iter().chain(&self.here).cloned().collect();
        (0..all.len()).map(|count| &all[..count]).find(serve).unwrap_or(&all).to_vec()
    }
}

/// Whoever types a path on a command line means the working directory. Where such a value, its key being one of `typed`, would
/// lead to another file of that name, it is spelled out.
pub fn spell_out_typed(table: &mut Table, typed: &[Vec<String>], search: &SearchPath) {
    for keys in PATH_KEYS {
        if !typed.iter().any(|typed| keys.iter().zip(typed).all(|(key, typed)| key == typed)) {
            continue;
        }
        let Some((last, above)) = keys.split_last() else { continue };
        let inner = above.iter().try_fold(&mut *table, |table, key| table.get_mut(*key)?.as_table_mut());
        let Some(Value::String(path)) = inner.and_then(|inner| inner.get_mut(*last)) else { continue };
        let meant = search.here.as_ref().map(|here| here.join(&*path)).filter(|meant| meant.exists());
        if let Some(meant) = meant.filter(|meant| search.below_file(Path::new(&*path)).is_some_and(|it| it != *meant)) {
            *path = meant.to_string_lossy().into_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rstest::rstest;

    use super::*;

    /// A project with a pipeline in `project/configs`, a working directory `elsewhere` and a run folder in neither.
    fn search(root: &Path) -> SearchPath {
        for (file, text) in [
            ("project/configs/beside", ""),
            ("project/above", ""),
            ("project/both", "project"),
            ("elsewhere/both", "elsewhere"),
            ("elsewhere/here", ""),
        ] {
            fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            fs::write(root.join(file), text).unwrap();
        }
        fs::create_dir_all(root.join("project/runs/one")).unwrap();
        let search = SearchPath::new(&root.join("project/configs/p.toml"), &[]);
        SearchPath { here: Some(root.join("elsewhere")), ..search }
    }

    #[rstest]
    #[case::beside("beside", Some("project/configs/beside"))]
    #[case::above("above", Some("project/above"))]
    #[case::the_file_before_the_working_directory("both", Some("project/both"))]
    #[case::the_working_directory_last("here", Some("here"))]
    #[case::nowhere("nowhere", None)]
    fn paths_are_relative_to_the_pipeline(#[case] path: &str, #[case] expected: Option<&str>) {
        let root = tempfile::tempdir().unwrap();
        let found = search(root.path()).locate(Path::new(path));
        let expected = expected.map(|expected| match expected {
            "here" => PathBuf::from("here"),
            expected => root.path().join(expected),
        });
        assert_eq!(found, expected);
    }

    #[rstest]
    #[case::found_from_there("project/runs/one", &["above"], &[])]
    #[case::the_pipeline_folder("project/runs/one", &["beside", "above"], &["project/configs"])]
    #[case::another_file_of_that_name("elsewhere", &["both"], &["project/configs"])]
    #[case::the_working_directory("project/runs/one", &["here"], &["project/configs", "elsewhere"])]
    fn a_run_folder_finds_the_same_files(#[case] folder: &str, #[case] paths: &[&str], #[case] expected: &[&str]) {
        let root = tempfile::tempdir().unwrap();
        let search = search(root.path());
        let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
        let from = search.seen_from(&root.path().join(folder), &paths);
        assert_eq!(from, expected.iter().map(|folder| root.path().join(folder)).collect::<Vec<_>>());
        let again = SearchPath::new(&root.path().join(folder).join("config.toml"), &from);
        let real = |found: Option<PathBuf>| found.map(|found| root.path().join("elsewhere").join(found));
        for path in &paths {
            assert_eq!(real(again.locate(path)), real(search.locate(path)), "{}", path.display());
        }
    }

    #[test]
    fn a_typed_path_means_the_working_directory() {
        let root = tempfile::tempdir().unwrap();
        let search = search(root.path());
        let parse =
            || "data.root = 'both'\nmodel.weights.path = 'both'\ntrigger.path = 'here'".parse::<Table>().unwrap();
        let keys = |typed: &[&str]| -> Vec<Vec<String>> {
            typed.iter().map(|key| key.split('.').map(String::from).collect()).collect()
        };
        let mut table = parse();
        spell_out_typed(&mut table, &keys(&["data.root", "trigger.path"]), &search);
        let meant = root.path().join("elsewhere/both").to_string_lossy().into_owned();
        assert_eq!(table["data"]["root"].as_str(), Some(meant.as_str()));
        assert_eq!((&table["trigger"], &table["model"]), (&parse()["trigger"], &parse()["model"]));
        spell_out_typed(&mut table, &keys(&["model.weights"]), &search);
        assert_eq!(table["model"]["weights"]["path"].as_str(), Some(meant.as_str()), "set as a whole table");
    }

    #[test]
    fn what_was_tried_is_said() {
        let root = tempfile::tempdir().unwrap();
        let tried = search(root.path()).tried(Path::new("nowhere"));
        for folder in ["project/configs and the folders above it", "the working directory"] {
            assert!(tried.contains(folder), "{tried}");
        }
        assert_eq!(search(root.path()).tried(Path::new("/nowhere")), "");
    }
}
