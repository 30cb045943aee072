//! What the end-to-end tests share: a tiny project in a temporary folder, and the program run in it.
#![allow(clippy::expect_used, reason = "a helper that cannot go on fails the test that called it")]

pub mod hub;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use candle_core::Device;
use lmr_pipeline::tensors::{sha256, to_safetensors};
use lmr_plugin::nn::StateDict;
use lmr_plugin::rng;
use lmr_plugin::zoo::ModelSpec;
use tempfile::TempDir;

/// Side of an image.
const SIDE: usize = 8;
/// Classes of the tiny data set.
const CLASSES: usize = 4;

/// A pipeline through every stage but `attack`; all stages take a fraction of a second.
pub const PIPELINE: &str = r#"
[run]
name = "tiny"
seed = 0

[model]
arch = "resnet18"
width = 2
classes = 4
channels = 1
weights = { path = "model.safetensors" }

[data]
name = "tiny"
clean = { split = "test", count = 40 }
test = { split = "test" }

[trigger]
kind = "patch"
size = 2
target = 0

[[stage]]
kind = "evaluate"
name = "received"

[[stage]]
kind = "estimate"
stop-accuracy = 0.1
training = { min-steps = 20 }

[[stage]]
kind = "logit-repel"
training = { epochs = 2 }

[[stage]]
kind = "delta-prune"

[[stage]]
kind = "recover"
name = "purify"
training = { epochs = 2 }

[[stage]]
kind = "evaluate"
name = "purified"

[[stage]]
kind = "quantize"
name = "int8"
from = "purify"

[[stage]]
kind = "evaluate"
name = "purified + int8"

[[stage]]
kind = "structured-prune"
name = "pruned"
from = "purify"

[[stage]]
kind = "evaluate"
name = "purified + pruned"
"#;

/// A pipeline that implants a backdoor into a freshly drawn model: what [`PIPELINE`] purifies.
pub const ATTACK: &str = r#"
[model]
arch = "resnet18"
width = 2
classes = 4
channels = 1

[data]
name = "tiny"
clean = { split = "test", count = 40 }

[trigger]
kind = "patch"
size = 2
target = 0

[[stage]]
kind = "attack"
training = { epochs = 8, batch-size = 32, lr = 0.05 }

[[stage]]
kind = "evaluate"
"#;

const DESCRIPTOR: &str = r#"
name = "tiny"
title = "Bright quadrants"
license = "CC0-1.0"
homepage = "https://example.org"
classes = ["a", "b", "c", "d"]

[image]
channels = 1
height = 8
width = 8

[normalization]
mean = [0.5]
std = [0.25]

[train]
kind = "idx"
images = "tiny/train-images"
labels = "tiny/train-labels"

[test]
kind = "idx"
images = "tiny/test-images"
labels = "tiny/test-labels"
"#;

/// A folder with a data set, a checkpoint and a pipeline file.
pub struct Project {
    dir: TempDir,
    program: PathBuf,
}

/// What a finished program said.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code, if it was not killed.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Project {
    /// A sound project: `pipeline.toml` is [`PIPELINE`], `attack.toml` is [`ATTACK`].
    pub fn new(program: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let project = Self { dir, program: program.into() };
        project.write("pipeline.toml", PIPELINE);
        project.write("attack.toml", ATTACK);
        project.write("datasets/tiny.toml", DESCRIPTOR);
        for (split, count) in [("train", 240), ("test", 160)] {
            let (images, labels) = quadrants(count, split);
            project.write(&format!("datasets/tiny/{split}-images"), idx(&[count, SIDE, SIDE], &images));
            project.write(&format!("datasets/tiny/{split}-labels"), idx(&[count], &labels));
        }
        project.write("model.safetensors", project.backdoored());
        project
    }

    /// What [`ATTACK`] makes of the tiny data set; made once a test program.
    fn backdoored(&self) -> &'static [u8] {
        static WEIGHTS: OnceLock<Vec<u8>> = OnceLock::new();
        WEIGHTS.get_or_init(|| {
            let run = self.run(&["pipeline", "attack.toml", "--out", "made"]);
            assert_eq!(run.code, Some(0), "{}", run.stderr);
            let weights = self.read("made/00-attack/model.safetensors");
            fs::remove_dir_all(self.path().join("made")).expect("an empty project");
            weights
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file, and the folders above it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("a file in the project")).expect("folders");
        fs::write(path, content).expect("a file");
    }

    /// Reads a file.
    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path().join(name)).expect("a file of the project")
    }

    /// Replaces a part of a text file, which must be in it.
    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let text = String::from_utf8(self.read(name)).expect("a text file");
        assert!(text.contains(from), "{name} has no {from:?}");
        self.write(name, text.replacen(from, to, 1));
    }

    /// Writes `model.safetensors`.
    pub fn write_weights(&self, state: StateDict) {
        self.write("model.safetensors", to_safetensors(&state, &BTreeMap::new()).expect("a checkpoint"));
    }

    /// The program in the project's folder, with no variable of this process that it would read.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).current_dir(self.path());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LMR_")) {
            command.env_remove(name);
        }
        command.env("HF_HUB_OFFLINE", "1");
        command
    }

    /// Runs the program to its end.
    pub fn run(&self, arguments: &[&str]) -> Finished {
        self.command(arguments).output().expect("a program that starts").into()
    }

    /// Starts the program and does not wait for it.
    pub fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a program that starts")
    }

    /// SHA-256 of every file under a folder by its path, without those that tell the time.
    pub fn digests(&self, folder: &str) -> BTreeMap<PathBuf, String> {
        let root = self.path().join(folder);
        let timeless = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            !["timing.json", "log.jsonl", "report.json", "report.md", ".lock"].contains(&name.as_str())
        };
        let relative = |path: PathBuf| {
            let digest = sha256(&fs::read(&path).expect("a file"));
            (path.strip_prefix(&root).expect("a file under it").to_path_buf(), digest)
        };
        files(&root).into_iter().filter(timeless).map(relative).collect()
    }

    /// Every file of the project, relative to it.
    pub fn files(&self) -> Vec<PathBuf> {
        let relative = |path: PathBuf| path.strip_prefix(self.path()).expect("a file of the project").to_path_buf();
        files(self.path()).into_iter().map(relative).collect()
    }
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// A fresh ResNet-18 for the tiny data set.
pub fn fresh_state(width: usize) -> StateDict {
    let table = format!("arch = \"resnet18\"\nwidth = {width}\nclasses = {CLASSES}\nchannels = 1");
    let spec: ModelSpec = toml::from_str(&table).expect("a model");
    let model = spec.fresh(rng::stream(7, "tests"), &Device::Cpu).expect("a model");
    model.params().state_dict().expect("its parameters")
}

/// An IDX file of unsigned bytes.
pub fn idx(dimensions: &[usize], values: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, dimensions.len() as u8];
    dimensions.iter().for_each(|size| bytes.extend((*size as u32).to_be_bytes()));
    bytes.extend(values);
    bytes
}

/// Images whose bright quadrant is their class, with noise; easy to learn.
fn quadrants(count: usize, split: &str) -> (Vec<u8>, Vec<u8>) {
    let noise = rng::permutation(&mut rng::stream(1, split), count * SIDE * SIDE);
    let labels: Vec<u8> = (0..count).map(|i| (i % CLASSES) as u8).collect();
    let pixel = |i: usize| {
        let (row, column) = (i / SIDE % SIDE, i % SIDE);
        let quadrant = row / (SIDE / 2) * 2 + column / (SIDE / 2);
        let bright = quadrant == usize::from(labels[i / (SIDE * SIDE)]);
        (if bright { 140 } else { 40 }) + (noise[i] % 80) as u8
    };
    ((0..count * SIDE * SIDE).map(pixel).collect(), labels)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}
