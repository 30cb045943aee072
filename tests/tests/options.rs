//! Every number that a stage or a trigger takes, at the ends of its declared range, just outside and far beyond: what is outside
//! is refused with its key, what is inside plans, and neither planning nor running panics.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use lmr_pipeline::registry::{STAGES, TRIGGERS};
use lmr_pipeline::{Options, Overrides, Plan, RunObserver};
use lmr_plugin::rng;
use lmr_plugin::run::{Event, Observer};
use lmr_tests::Project;
use serde_json::Value;

const HEAD: &str = r#"
[model]
arch = "resnet18"
width = 2
classes = 4
channels = CHANNELS
weights = { path = "model.safetensors" }

[data]
name = "tiny"
clean = { split = "test", count = 40 }
"#;

/// Gives every finding that a stage may need, at once.
const BEFORE: &str = r#"
[[stage]]
kind = "estimate"
class = 0

[[stage]]
kind = "logit-repel"
training = { epochs = 1, min-steps = 0 }

[[stage]]
kind = "delta-prune"
"#;

/// A number that an option may be, as TOML has it, and whether its range has it.
#[derive(Clone, Debug)]
struct Extreme {
    text: String,
    inside: bool,
}

/// An option by the keys that lead to it.
#[derive(Clone, Debug)]
struct Numeric {
    key: String,
    extremes: Vec<Extreme>,
}

/// The numbers among the options of a table.
fn numeric(root: &Value, schema: &Value, prefix: &str, found: &mut Vec<Numeric>) {
    let schema = resolve(root, schema);
    for (key, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let schema = resolve(root, schema);
        let key = format!("{prefix}{key}");
        let is =
            |name: &str| schema["type"] == name || schema["type"].as_array().is_some_and(|t| t.contains(&name.into()));
        // A seed is any number.
        let extremes = match schema["format"] == "uint64" {
            true => Vec::new(),
            false if is("integer") => integers(schema),
            false if is("number") => reals(schema),
            false => Vec::new(),
        };
        match extremes.is_empty() {
            false => found.push(Numeric { key, extremes }),
            true => numeric(root, schema, &format!("{key}."), found),
        }
    }
}

/// What a schema refers to, `null` as an alternative left aside.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let pointer =
        |schema: &'a Value| schema.get("$ref").and_then(Value::as_str).and_then(|name| name.strip_prefix('#'));
    let parts = ["allOf", "anyOf"].iter().filter_map(|key| schema.get(key)?.as_array()).flatten();
    let referred = std::iter::once(schema).chain(parts).find_map(pointer);
    referred.and_then(|pointer| root.pointer(pointer)).unwrap_or(schema)
}

fn integers(schema: &Value) -> Vec<Extreme> {
    let bound = |key: &str| schema.get(key).and_then(|bound| Some(bound.as_f64()? as i64));
    let (min, max) = (bound("minimum").unwrap_or(i64::MIN), bound("maximum"));
    let odd = schema.get("not").is_some();
    let limit = max.unwrap_or(u32::MAX.into());
    let values = [min, limit, min.saturating_sub(1), limit + 1, 0, -1, 1 << 32, i64::MAX, i64::MIN];
    let inside = |value: i64| min <= value && value <= limit && !(odd && value % 2 == 0);
    values.into_iter().map(|value| Extreme { text: value.to_string(), inside: inside(value) }).collect()
}

fn reals(schema: &Value) -> Vec<Extreme> {
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    let [min, above, max, below] = ["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"].map(bound);
    let inside = |value: f64| {
        value.is_finite()
            && min.is_none_or(|min| value >= min)
            && above.is_none_or(|above| value > above)
            && max.is_none_or(|max| value <= max)
            && below.is_none_or(|below| value < below)
    };
    let ends = [min, above, max, below].into_iter().flatten().flat_map(|end| [end.next_down(), end, end.next_up()]);
    let far = [f64::MIN, f64::MAX, f64::MIN_POSITIVE, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    let text = |value: f64| if value.is_nan() { "nan".into() } else { format!("{value:?}") };
    ends.chain(far).map(|value| Extreme { text: text(value), inside: inside(value) }).collect()
}

/// A pipeline with one stage or trigger of a kind, and the numbers it takes with the key of their table.
struct Subject {
    kind: &'static str,
    table: &'static str,
    pipeline: String,
    numbers: Vec<Numeric>,
}

fn subjects() -> Vec<Subject> {
    let schema = lmr_pipeline::schema::pipeline();
    let numbers = |list: &Value, kind: &str| {
        let entry = list.as_array().unwrap().iter().find(|entry| entry["properties"]["kind"]["const"] == kind).unwrap();
        let mut found = Vec::new();
        numeric(&schema, entry, "", &mut found);
        found.retain(|number| number.key != "target");
        found
    };
    let pipeline = |trigger: &str, stages: &str| {
        let channels = if trigger == "filter" { "3" } else { "1" };
        format!("{}\n[trigger]\nkind = \"{trigger}\"\ntarget = 0\n{stages}", HEAD.replace("CHANNELS", channels))
    };
    let stages = STAGES.iter().map(|kind| {
        let trigger = if kind.learns() { "learned" } else { "patch" };
        // The one whose options contradict each other by default.
        let label = if kind.kind == "attack" { "label = \"clean\"\n" } else { "" };
        let stages = format!("{BEFORE}\n[[stage]]\nkind = \"{}\"\nname = \"subject\"\n{label}", kind.kind);
        let numbers = numbers(&schema["properties"]["stage"]["items"]["oneOf"], kind.kind);
        Subject { kind: kind.kind, table: "stage.subject", pipeline: pipeline(trigger, &stages), numbers }
    });
    // Those that read no file.
    let made = TRIGGERS.iter().filter(|kind| !["image", "stored", "learned", "filter"].contains(&kind.kind));
    let triggers = made.map(|kind| {
        let numbers = numbers(&schema["properties"]["trigger"]["oneOf"], kind.kind);
        let pipeline = pipeline(kind.kind, "[[stage]]\nkind = \"evaluate\"\n");
        Subject { kind: kind.kind, table: "trigger", pipeline, numbers }
    });
    stages.chain(triggers).collect()
}

fn project() -> Project {
    Project::new(env!("CARGO_BIN_EXE_lmr-under-test"))
}

/// Planning with options, and the message where it refuses them.
fn planned(project: &Project, subject: &Subject, options: &[(&str, &Extreme)]) -> Result<Plan, String> {
    let set: Vec<String> =
        options.iter().map(|(key, extreme)| format!("{}.{key}={}", subject.table, extreme.text)).collect();
    let shown = format!("{}: {set:?}", subject.kind);
    let file = project.path().join("subject.toml");
    let mut overrides = Overrides::default();
    overrides.set = set;
    let load = || Plan::load(&file, &overrides);
    let planned = catch_unwind(AssertUnwindSafe(load));
    planned.unwrap_or_else(|_| panic!("planning panicked, {shown}")).map_err(|error| error.to_string())
}

/// What a number within its range may still contradict: another option, the images or the classes.
const RULES: &[&str] = &[
    "expected a number that leaves at most 1 together with poison-rate",
    "rounds: expected at most two thirds of training.epochs",
    "to-ratio: expected at least from-ratio",
    "epochs: expected at least 1 while min-steps is 0",
    "poison-rate: expected a number in [0, 1), found 1",
    "poison.perturb: expected label = \"clean\" beside it",
    "size: expected 1 to ",
];

#[test]
fn declared_ranges_are_the_ranges() {
    let project = project();
    let (mut refused, mut accepted) = (0, 0);
    for subject in subjects() {
        project.write("subject.toml", &subject.pipeline);
        planned(&project, &subject, &[]).unwrap_or_else(|message| panic!("{}: {message}", subject.kind));
        for number in &subject.numbers {
            for extreme in &number.extremes {
                let shown = format!("{} {} = {}", subject.kind, number.key, extreme.text);
                let Err(message) = planned(&project, &subject, &[(&number.key, extreme)]) else {
                    assert!(extreme.inside, "accepted: {shown}");
                    accepted += 1;
                    continue;
                };
                match extreme.inside {
                    true => assert!(RULES.iter().any(|rule| message.contains(rule)), "{shown}: {message}"),
                    false => assert!(message.contains(&format!("{}: expected ", number.key)), "{shown}: {message}"),
                }
                refused += 1;
            }
        }
    }
    println!("{accepted} accepted, {refused} refused");
    assert!(accepted > 500 && refused > 1000, "{accepted} accepted, {refused} refused");
}

/// Asks to stop once its time is over.
struct Deadline(Instant);

impl Observer for Deadline {
    fn event(&self, _: &Event<'_>) {}

    fn cancelled(&self) -> bool {
        Instant::now() > self.0
    }
}

impl RunObserver for Deadline {}

/// All options at their least, all at their most, and mixtures: what plans may fail or be cut short, but not panic.
#[test]
fn extremes_run_without_a_panic() {
    const MIXTURES: usize = 4;
    let project = project();
    let mut draws = rng::stream(0, "mixtures");
    let mut runs = 0;
    for subject in subjects() {
        project.write("subject.toml", &subject.pipeline);
        for mixture in 0..2 + MIXTURES {
            let mut options = Vec::new();
            for number in &subject.numbers {
                let mut inside: Vec<&Extreme> = number.extremes.iter().filter(|extreme| extreme.inside).collect();
                let value = |extreme: &Extreme| extreme.text.parse::<f64>().unwrap();
                inside.sort_by(|a, b| value(a).total_cmp(&value(b)));
                let chosen = match mixture {
                    0 => 0,
                    1 => inside.len() - 1,
                    _ => rng::permutation(&mut draws, inside.len())[0],
                };
                options.push((number.key.as_str(), inside[chosen]));
            }
            // Mixtures leave some options as they are.
            if mixture > 1 {
                let keep = rng::permutation(&mut draws, options.len());
                options = keep.into_iter().take(options.len() / 2).map(|at| options[at]).collect();
            }
            let Ok(mut plan) = planned(&project, &subject, &options) else { continue };
            let at = Options::default().with_out(project.path().join("out"));
            let deadline = Deadline(Instant::now() + Duration::from_millis(400));
            let ran = catch_unwind(AssertUnwindSafe(|| lmr_pipeline::run(&mut plan, &at, &deadline).map(drop)));
            assert!(ran.is_ok(), "running panicked, {}: {options:?}", subject.kind);
            runs += 1;
        }
    }
    println!("{runs} runs");
    assert!(runs > 50, "{runs} runs");
}
