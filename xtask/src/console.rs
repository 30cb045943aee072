//! What a person sees while a pipeline runs: bars on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use lmr_pipeline::RunObserver;
use lmr_pipeline::plan::Step;
use lmr_pipeline::report::StageReport;
use lmr_plugin::run::{Event, Observer};
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// A line of progress at most this often where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How much is said.
#[derive(Clone, Copy, Debug)]
pub struct Verbosity {
    /// How often `-v` was given.
    pub verbose: u8,
    /// Whether `--quiet` was given.
    pub quiet: bool,
}

/// Shows progress, and knows whether the user asked to stop.
pub struct Console {
    quiet: bool,
    /// Where the stage's bar is drawn, and what keeps other lines from tearing it. Hidden where there is no terminal.
    screen: MultiProgress,
    stage: Mutex<Stage>,
    /// The file that is being downloaded, before the first stage.
    download: Mutex<Option<Download>>,
    stop: Arc<AtomicBool>,
}

/// The stage that is being shown.
struct Stage {
    label: String,
    bar: ProgressBar,
    phase: String,
    phase_began: Instant,
    line_written: Instant,
    metric: String,
}

/// The file that is being downloaded.
struct Download {
    file: String,
    bar: ProgressBar,
    began: Instant,
    line_written: Instant,
}

impl Console {
    /// Sets up bars or lines, and the log of warnings and details on standard error.
    pub fn new(verbosity: Verbosity) -> Self {
        let bars = std::io::stderr().is_terminal() && !verbosity.quiet;
        let target = if bars { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let screen = MultiProgress::with_draw_target(target);
        let (others, xtask, pipeline, plugin) = match verbosity {
            Verbosity { quiet: true, .. } | Verbosity { verbose: 0, .. } => {
                (Level::WARN, Level::WARN, Level::WARN, Level::WARN)
            }
            Verbosity { verbose: 1, .. } => (Level::WARN, Level::INFO, Level::DEBUG, Level::INFO),
            _ => (Level::INFO, Level::TRACE, Level::TRACE, Level::TRACE),
        };
        let targets = [("xtask", xtask), ("lmr_pipeline", pipeline), ("lmr_plugin", plugin)];
        let writer = screen.clone();
        // Fails only where a subscriber is set already, which then stays.
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(move || AboveBars(writer.clone()))
            .with_target(false)
            .without_time()
            .with_filter(Targets::new().with_default(others).with_targets(targets));
        let _ = tracing_subscriber::registry().with(lines).try_init();
        let now = Instant::now();
        let stage = Stage {
            label: String::new(),
            bar: ProgressBar::hidden(),
            phase: String::new(),
            phase_began: now,
            line_written: now,
            metric: String::new(),
        };
        Self {
            quiet: verbosity.quiet,
            screen,
            stage: Mutex::new(stage),
            download: Mutex::default(),
            stop: Arc::default(),
        }
    }

    /// The first Ctrl-C stops the run where that is clean, the second one at once.
    pub fn handle_interrupts(&self) -> anyhow::Result<()> {
        let (stop, screen) = (self.stop.clone(), self.screen.clone());
        ctrlc::set_handler(move || {
            if stop.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            screen.suspend(|| eprintln!("stopping; once more to stop at once"));
        })?;
        Ok(())
    }

    /// Whether only warnings and errors are said.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Shows the progress of another piece of work.
    pub fn begin(&self, label: &str) {
        let mut stage = self.stage();
        stage.phase.clear();
        stage.metric.clear();
        stage.line_written = Instant::now();
        stage.bar = self.screen.add(ProgressBar::new(0).with_style(style()).with_prefix(label.to_owned()));
        stage.label = label.to_owned();
    }

    /// Takes the bars away.
    pub fn done(&self) {
        self.stage().bar.finish_and_clear();
        if let Some(download) = self.download.lock().unwrap_or_else(PoisonError::into_inner).take() {
            download.bar.finish_and_clear();
        }
    }

    fn line(&self, text: &str) {
        if !self.quiet {
            self.screen.suspend(|| eprintln!("{text}"));
        }
    }

    fn stage(&self) -> std::sync::MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self, phase: &str, done: usize, total: usize, unit: &str) {
        let mut stage = self.stage();
        if stage.phase != phase {
            stage.phase = phase.to_string();
            stage.phase_began = Instant::now();
            stage.bar.set_position(0);
            stage.bar.set_length(total as u64);
            stage.bar.reset_eta();
        }
        stage.bar.set_position(done as u64);
        stage.bar.set_message(format!("{unit}s  {phase}{}", stage.metric));
        if self.screen.is_hidden() && !self.quiet && stage.line_written.elapsed() >= LINE_EVERY {
            stage.line_written = Instant::now();
            let rate = done as f64 / stage.phase_began.elapsed().as_secs_f64().max(1e-9);
            let eta = total.saturating_sub(done) as f64 / rate.max(1e-9);
            let (label, metric) = (&stage.label, &stage.metric);
            eprintln!("{label}  {phase}  {done}/{total} {unit}s  {rate:.1}/s  ETA {eta:.0} s{metric}");
        }
    }
}

impl Console {
    /// A bar of its own for every file, and a line once it is there.
    fn downloaded(&self, file: &str, done: usize, total: usize) {
        let mut shown = self.download.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let download = match shown.take() {
            Some(download) if download.file == file => download,
            other => {
                other.iter().for_each(|other| other.bar.finish_and_clear());
                let bar = ProgressBar::new(total as u64).with_style(download_style()).with_prefix(file.to_owned());
                Download { file: file.to_owned(), bar: self.screen.add(bar), began: now, line_written: now }
            }
        };
        let (size, bytes) = (HumanBytes(total as u64), HumanBytes(done as u64));
        if done == total {
            download.bar.finish_and_clear();
            self.line(&format!("{file}  {size} downloaded  {:.1} s", download.began.elapsed().as_secs_f64()));
            return;
        }
        download.bar.set_position(done as u64);
        let mut line_written = download.line_written;
        if self.screen.is_hidden() && line_written.elapsed() >= LINE_EVERY {
            line_written = now;
            self.line(&format!("{file}  {bytes} of {size}"));
        }
        *shown = Some(Download { line_written, ..download });
    }
}

impl Observer for Console {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Progress { phase, done, total, unit: "byte" } => self.downloaded(phase, *done, *total),
            Event::Progress { phase, done, total, unit } => self.progress(phase, *done, *total, unit),
            Event::Metric { name, value, .. } => self.stage().metric = format!("  {name} {value:.4}"),
            Event::Warning(message) => self.line(&format!("warning: {message}")),
            // What later versions tell of.
            _ => {}
        }
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

impl RunObserver for Console {
    fn started(&self, step: &Step, of: usize) {
        self.begin(&label(step, of));
    }

    fn finished(&self, step: &Step, report: &StageReport, of: usize) {
        self.done();
        let how = if report.reused { "reused".into() } else { format!("{:.1} s", report.seconds) };
        self.line(&format!("{}  {how}", label(step, of)));
    }
}

fn style() -> ProgressStyle {
    let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        // The first steps tell nothing yet. And nothing is to be done about a terminal that takes no text.
        if state.elapsed() > Duration::from_secs(1) {
            let _ = write!(out, "{:.1}/s", state.per_sec());
        }
    };
    ProgressStyle::with_template("{prefix}  {bar:16}  {pos}/{len} {wide_msg} {rate}  ETA {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("rate", rate)
}

fn download_style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix}  {bar:16}  {bytes}/{total_bytes}  {bytes_per_sec}  ETA {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn label(step: &Step, of: usize) -> String {
    let kind = step.kind.kind;
    let name = if step.name == kind { kind.to_string() } else { format!("{kind} ({})", step.name) };
    format!("[{}/{of}] {name}", step.index + 1)
}

/// Writes log lines without tearing the bars.
struct AboveBars(MultiProgress);

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.suspend(|| std::io::stderr().write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}
