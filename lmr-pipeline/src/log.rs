//! `log.jsonl`: what happened when, one JSON object a line.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use lmr_plugin::run::{Event, Observer};
use serde_json::{Value, json};

use crate::observer::RunObserver;
use crate::{Error, Result};

/// An open log. Lines are only ever added.
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens the log of a run folder. A killed run may have left half a line; the next one then starts on its own.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("log.jsonl");
        let open = || {
            let mut file = OpenOptions::new().create(true).read(true).append(true).open(&path)?;
            let mut last = [b'\n'];
            if file.metadata()?.len() > 0 {
                file.seek(SeekFrom::End(-1))?;
                file.read_exact(&mut last)?;
            }
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
            Ok(file)
        };
        let file = open().map_err(Error::io("open", &path))?;
        Ok(Self { path, file })
    }

    /// Adds a line: the time, the stage, then the fields of `event`.
    pub fn write(&self, stage: &str, event: Value) -> Result<()> {
        let mut line = json!({ "time": jiff::Timestamp::now().to_string(), "stage": stage });
        if let (Value::Object(line), Value::Object(event)) = (&mut line, event) {
            line.extend(event);
        }
        // One write call a line, so that a kill leaves at most one torn line.
        (&self.file).write_all(format!("{line}\n").as_bytes()).map_err(Error::io("write", &self.path))
    }
}

/// Passes a stage's events on, and logs all but progress.
pub struct Logged<'a> {
    pub log: &'a Log,
    pub stage: &'a str,
    pub inner: &'a dyn RunObserver,
}

impl Observer for Logged<'_> {
    fn event(&self, event: &Event<'_>) {
        let line = match event {
            Event::Metric { name, step, value } => {
                Some(json!({ "event": "metric", "name": name, "step": step, "value": value }))
            }
            Event::Warning(message) => Some(json!({ "event": "warning", "message": message })),
            // Progress, and what later versions tell of.
            _ => None,
        };
        // A full disk is no reason to stop the training; the stage's result will say so if it cannot be written.
        if let Some(Err(error)) = line.map(|line| self.log.write(self.stage, line)) {
            tracing::warn!("{error}");
        }
        self.inner.event(event);
    }

    fn cancelled(&self) -> bool {
        self.inner.cancelled()
    }
}
