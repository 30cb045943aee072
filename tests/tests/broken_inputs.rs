//! Whatever is wrong with the input, the program says what, where and what would help, and leaves nothing half-done.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use std::fs;

use candle_core::{DType, Device, Tensor};
use lmr_plugin::nn::StateDict;
use lmr_tests::{Finished, Project, fresh_state, idx};
use rstest::rstest;

fn project() -> Project {
    Project::new(env!("CARGO_BIN_EXE_lmr-under-test"))
}

const RUN: &[&str] = &["pipeline", "pipeline.toml"];

/// Bad input: exit code 2, every fragment in the message, and not one file more than before.
fn refused(project: &Project, arguments: &[&str], fragments: &[&str]) {
    let before = project.files();
    let run = project.run(arguments);
    explained(&run, 2, fragments);
    assert_eq!(project.files(), before, "a refused run leaves no file");
}

fn explained(run: &Finished, code: i32, fragments: &[&str]) {
    for fragment in fragments {
        assert!(run.stderr.contains(fragment), "no {fragment:?} in: {}", run.stderr);
    }
    assert_eq!(run.code, Some(code), "{}", run.stderr);
    for word in ["panicked", "RUST_BACKTRACE", "this is a bug"] {
        assert!(!run.stderr.contains(word), "{}", run.stderr);
    }
    assert!(run.stdout.is_empty(), "{}", run.stdout);
}

// The pipeline file: one edit each.
#[rstest]
#[case::syntax("[model]", "[model", &["line 6, column", "pipeline.toml"])]
#[case::unknown_section("[model]", "[modle]", &["modle: unknown section; did you mean `model`?", "model: missing; add a [model] table"])]
#[case::profiles_malformed("[model]", "[profile]\npaper = 3\n[model]", &["profile: paper: expected a table, found 3"])]
#[case::unknown_key("seed = 0", "sede = 0", &["run.sede: unknown key; did you mean `seed`?"])]
#[case::unknown_nested_key("{ split = \"test\", count = 40 }", "{ split = \"test\", cout = 40 }", &["data.clean", "`cout`", "did you mean `count`?"])]
#[case::unknown_option("stop-accuracy", "stop-acuracy", &["stage[1] (estimate).stop-acuracy: unknown key; did you mean `stop-accuracy`?"])]
#[case::moved_option("epochs = 2", "epochs = 3 }\nepochs = 2\nvotes = { a = 1", &["stage[2] (logit-repel).epochs: unknown key; it is an option of `training`, as in `training.epochs`", "stage[2] (logit-repel).votes: unknown key"])]
#[case::renamed_option("stop-accuracy = 0.1", "stop-accuracy = 0.1\nmax-steps = 5", &["stage[1] (estimate).max-steps: unknown key; did you mean `training.min-steps`?"])]
#[case::unknown_training_option("epochs = 2", "epocs = 2", &["stage[2] (logit-repel).training", "unknown key `epocs`; did you mean `epochs`?"])]
#[case::wrong_type("epochs = 2", "epochs = \"two\"", &["stage[2] (logit-repel).training.epochs: expected a whole number, 0 or more, found \"two\""])]
#[case::wrong_type_in_run("seed = 0", "seed = \"zero\"", &["run.seed: expected a whole number, 0 or more, found \"zero\""])]
#[case::negative("epochs = 2", "epochs = -1", &["stage[2] (logit-repel).training.epochs: expected a whole number, 0 or more, found -1"])]
#[case::impossible_value("epochs = 2", "lr = -0.5", &["stage[2] (logit-repel).training.lr: expected a number above 0, found -0.5"])]
#[case::not_a_number("epochs = 2", "lr = nan", &["stage[2] (logit-repel).training.lr: expected a number above 0, found NaN"])]
#[case::unknown_stage("kind = \"estimate\"", "kind = \"estimat\"", &["stage[1].kind: unknown stage \"estimat\"; did you mean `estimate`?"])]
#[case::no_kind("kind = \"estimate\"", "", &["stage[1].kind: missing"])]
#[case::kind_of_wrong_type("kind = \"estimate\"", "kind = 3", &["stage[1].kind: expected a name in quotes, found 3"])]
#[case::order("[[stage]]\nkind = \"estimate\"\nstop-accuracy = 0.1\ntraining = { min-steps = 20 }", "", &["stage[1] (logit-repel): needs `backdoor-class`; put a stage of kind `estimate` before it"])]
#[case::other_branch("kind = \"recover\"", "kind = \"recover\"\nfrom = \"received\"", &["stage[4] (recover): needs `pruned-columns`, which `delta-prune` gives", "check `from`"])]
#[case::duplicate_name("name = \"purified\"", "name = \"received\"", &["stage[5] (evaluate).name: stage[0] is called `received` too"])]
#[case::unknown_from("from = \"purify\"", "from = \"purfy\"", &["stage[6] (quantize).from: no earlier stage is called `purfy`; did you mean `purify`?"])]
#[case::from_later("from = \"purify\"", "from = \"pruned\"", &["stage[6] (quantize).from: `pruned` does not run before this stage"])]
#[case::from_itself("from = \"purify\"", "from = \"int8\"", &["stage[6] (quantize).from: `int8` does not run before this stage"])]
#[case::after_deployment("name = \"pruned\"\nfrom = \"purify\"", "name = \"pruned\"\nfrom = \"int8\"", &["stage[8] (structured-prune): works on the full-precision model, but gets the one that `int8` deployed"])]
#[case::forms_after_deployment("name = \"purified + int8\"", "name = \"purified + int8\"\ndeploy = [{ prune = {} }]", &["(evaluate): works on the full-precision model, but gets the one that `int8` deployed"])]
#[case::no_weights_file("model.safetensors", "modle.safetensors", &["model.weights.path: there is no file modle.safetensors"])]
#[case::weights_of_wrong_type("{ path = \"model.safetensors\" }", "\"model.safetensors\"", &["model.weights: expected { path", "found \"model.safetensors\""])]
#[case::weights_twice("{ path = \"model.safetensors\" }", "{ path = \"model.safetensors\", hub = \"some/model\" }", &["model.weights: there are both `path` and `hub`; remove one"])]
#[case::weights_nowhere("{ path = \"model.safetensors\" }", "{ key = \"model\" }", &["model.weights: expected `path` (a file or folder) or `hub` (a repository, \"owner/name\"), found neither"])]
#[case::revision_of_a_path("{ path = \"model.safetensors\" }", "{ path = \"model.safetensors\", revision = \"main\", allow-pickle = true }", &["model.weights.revision: belongs to `hub`", "model.weights.allow-pickle: belongs to `hub`"])]
#[case::repository_malformed("{ path = \"model.safetensors\" }", "{ hub = \"https://huggingface.co/some/model\" }", &["model.weights.hub: found \"https://huggingface.co/some/model\", expected \"owner/name\""])]
#[case::repository_above("{ path = \"model.safetensors\" }", "{ hub = \"../model\" }", &["model.weights.hub: found \"../model\", expected \"owner/name\""])]
#[case::revision_malformed("{ path = \"model.safetensors\" }", "{ hub = \"some/model\", revision = \"../../x\" }", &["model.weights.revision: found \"../../x\", expected a commit"])]
#[case::hub_file_above("{ path = \"model.safetensors\" }", "{ hub = \"some/model\", file = \"../x.safetensors\" }", &["model.weights.file: found \"../x.safetensors\", expected a relative path"])]
#[case::hub_pickle("{ path = \"model.safetensors\" }", "{ hub = \"some/model\", file = \"model.pth\" }", &["model.weights.file: \"model.pth\" is a pickle", "allow-pickle = true"])]
#[case::hub_sha256_malformed("{ path = \"model.safetensors\" }", "{ hub = \"some/model\", sha256 = \"abc\" }", &["model.weights.sha256: expected 64 hexadecimal digits, found \"abc\""])]
#[case::hub_offline("{ path = \"model.safetensors\" }", "{ hub = \"lmr-nobody/lmr-nothing\" }", &["a checkpoint of model repository lmr-nobody/lmr-nothing at main is missing", "unset HF_HUB_OFFLINE", "`hf download lmr-nobody/lmr-nothing --revision main`", "set `path`"])]
#[case::sha256_malformed("{ path = \"model.safetensors\" }", "{ path = \"model.safetensors\", sha256 = \"abc\" }", &["model.weights.sha256: expected 64 hexadecimal digits, found \"abc\""])]
#[case::sha256_of_another_file("{ path = \"model.safetensors\" }", "{ path = \"model.safetensors\", sha256 = \"0000000000000000000000000000000000000000000000000000000000000000\" }", &["model.safetensors: its SHA-256 is", "the pipeline expects 0000"])]
#[case::unknown_arch("\"resnet18\"", "\"resnet19\"", &["model.arch: expected", "found \"resnet19\"; did you mean \"resnet18\"?"])]
#[case::missing_key("arch = \"resnet18\"\n", "", &["model.arch: missing"])]
#[case::class_count("classes = 4", "classes = 10", &["model.classes: expected 4, as the dataset tiny has, found 10"])]
#[case::no_classes("classes = 4", "classes = 0", &["model.classes: expected 2 to", "found 0"])]
#[case::channels("channels = 1", "channels = 3", &["model.channels: expected 1, as the dataset tiny has, found 3"])]
#[case::unknown_dataset("name = \"tiny\"\nclean", "name = \"tniy\"\nclean", &["data.name: there is no datasets/tniy.toml; did you mean `tiny`?"])]
#[case::no_dataset("name = \"tiny\"\nclean", "clean", &["data.name: missing"])]
#[case::no_data_folder("name = \"tiny\"\nclean", "name = \"tiny\"\nroot = \"nowhere\"\nclean", &["data.root: there is no folder nowhere"])]
#[case::unknown_split("split = \"test\", count", "split = \"validation\", count", &["data.clean.split: expected \"train\" or \"test\", found \"validation\""])]
#[case::empty_clean_set("count = 40", "count = 0", &["data.clean.count: expected at least 1, found 0"])]
#[case::clean_set_without_a_class("count = 40", "count = 3", &["data.clean.count: expected at least 4, an image of every class, since `estimate` cannot tell", "found 3", "`class = …`"])]
#[case::images_too_small("arch = \"resnet18\"", "arch = \"vgg16-bn\"", &["model.arch: its pooling needs images of at least 32x32; the dataset tiny has 8x8"])]
#[case::clean_set_too_large("count = 40", "count = 161", &["data `tiny`", "161", "160"])]
#[case::clean_set_takes_all("count = 40", "count = 160", &["data `tiny`: no image is left for the test set"])]
#[case::empty_test_set("test = { split = \"test\" }", "test = { split = \"test\", count = 0 }", &["data.test.count: expected at least 1, found 0"])]
#[case::device("seed = 0", "device = \"gpu\"", &["run.device: expected \"auto\", \"cpu\", \"cuda:N\" or \"metal:N\", found \"gpu\""])]
#[case::dtype("seed = 0", "device = \"cpu\"\ndtype = \"bf16\"", &["run.dtype: expected \"f32\", which is all that the CPU computes in"])]
#[case::dtype_unknown("seed = 0", "dtype = \"f8\"", &["run.dtype", "f8"])]
#[case::device_not_built("seed = 0", "device = \"cuda:0\"", &["run.device", "--features cuda"])]
#[case::run_name("name = \"tiny\"\nseed", "name = \"../tiny\"\nseed", &["run.name: expected letters", "found \"../tiny\""])]
#[case::seed_too_large("seed = 0", "seed = 9223372036854775808", &["pipeline.toml"])]
#[case::unknown_trigger("kind = \"patch\"", "kind = \"pach\"", &["trigger.kind: unknown trigger \"pach\"; did you mean `patch`?"])]
#[case::no_target("target = 0\n", "", &["trigger.target: missing"])]
#[case::target_too_large("target = 0", "target = 4", &["trigger.target: expected a class below 4, found 4"])]
#[case::target_negative("target = 0", "target = -1", &["trigger.target: expected a class number, 0 or more, found -1"])]
#[case::trigger_too_large("size = 2", "size = 9", &["trigger", "9"])]
#[case::nobody_learns("kind = \"patch\"\nsize = 2", "kind = \"learned\"", &["trigger.kind: no stage of this pipeline learns a trigger; add one of kind `attack-trojan`", "kind = \"stored\""])]
#[case::stored_nowhere("kind = \"patch\"\nsize = 2", "kind = \"stored\"\npath = \"t.safetensors\"", &["trigger.path: there is no file t.safetensors"])]
#[case::stored_without_path("kind = \"patch\"\nsize = 2", "kind = \"stored\"", &["trigger.path: missing"])]
#[case::stored_is_a_model("kind = \"patch\"\nsize = 2", "kind = \"stored\"\npath = \"model.safetensors\"", &["trigger.path: model.safetensors: the tensor `mask` is missing"])]
#[case::stored_is_text("kind = \"patch\"\nsize = 2", "kind = \"stored\"\npath = \"pipeline.toml\"", &["trigger.path: pipeline.toml: is cut off or no safetensors file"])]
#[case::picture_is_text("kind = \"patch\"\nsize = 2", "kind = \"image\"\npath = \"pipeline.toml\"", &["trigger.path: pipeline.toml: found"])]
#[case::grey_filter("kind = \"patch\"\nsize = 2", "kind = \"filter\"", &["a filter needs images of 3 channels, found 1"])]
#[case::trigger_option("size = 2", "sice = 2", &["trigger.sice: unknown key; did you mean `size`?"])]
fn pipeline_files(#[case] from: &str, #[case] to: &str, #[case] fragments: &[&str]) {
    let project = project();
    project.edit("pipeline.toml", from, to);
    refused(&project, RUN, fragments);
}

#[rstest]
#[case::no_file(&["pipeline", "nowhere.toml"], &["nowhere.toml: there is no such file"])]
#[case::folder(&["pipeline", "datasets"], &["datasets"])]
#[case::set_without_value(&["pipeline", "pipeline.toml", "--set", "run.seed"], &["--set run.seed: expected key=value"])]
#[case::set_without_section(&["pipeline", "pipeline.toml", "--set", "seed=1"], &["--set seed=1: expected a section and a key"])]
#[case::set_unknown_stage(&["pipeline", "pipeline.toml", "--set", "stage.purfy.epochs=1"], &["--set stage.purfy.epochs=1", "no stage has the name, kind or index `purfy`; did you mean `purify`?"])]
#[case::set_unknown_key(&["pipeline", "pipeline.toml", "--set", "stage.purify.training.epoch=1"], &["--set stage.purify.training.epoch=1: stage[4] (recover).training.epoch: unknown key `epoch`; did you mean `epochs`?"])]
#[case::set_wrong_type(&["pipeline", "pipeline.toml", "--set", "run.seed=one"], &["--set run.seed=one: run.seed: expected a whole number, 0 or more, found \"one\""])]
#[case::set_through_a_value(&["pipeline", "pipeline.toml", "--set", "run.seed.x=1"], &["run.seed: expected a whole number, 0 or more, found a table"])]
#[case::unknown_flag(&["pipeline", "pipeline.toml", "--sed", "1"], &["--sed"])]
#[case::no_threads(&["pipeline", "pipeline.toml", "--threads", "0"], &["--threads", "1..=1024"])]
#[case::no_stages(&["pipeline", "empty.toml"], &["empty.toml: stage: there is no stage; add at least one [[stage]]"])]
#[case::stage_no_list(&["pipeline", "table.toml"], &["table.toml: stage: expected a list of stages, written as [[stage]], found a table"])]
#[case::attack_without_trigger(&["pipeline", "attack.toml", "--set", "data.train.count=0"], &["attack.toml: stage[0] (attack): needs a trigger", "data.train.count"])]
fn arguments_and_files(#[case] arguments: &[&str], #[case] fragments: &[&str]) {
    let project = project();
    let head = "[model]\narch = \"resnet18\"\nwidth = 2\nclasses = 4\nchannels = 1\n[data]\nname = \"tiny\"\n";
    project.write("empty.toml", head);
    project.write("table.toml", format!("{head}[stage]\nkind = \"evaluate\"\n"));
    project.edit("attack.toml", "[trigger]\nkind = \"patch\"\nsize = 2\ntarget = 0\n", "");
    refused(&project, arguments, fragments);
}

#[rstest]
#[case::learns_what_is_given("kind = \"attack\"\ntraining = { epochs = 8, batch-size = 32, lr = 0.05 }", "kind = \"attack-lira\"", &["stage[0] (attack-lira): learns its trigger, so trigger.kind must be \"learned\"; found \"patch\""])]
#[case::implants_what_is_learned("kind = \"patch\"\nsize = 2", "kind = \"learned\"", &["stage[0] (attack): implants a given trigger, but trigger.kind is \"learned\", which is for `attack-trojan`"])]
#[case::nested_option("training = {", "perturb = { stepps = 2 }\ntraining = {", &["stage[0] (attack).perturb", "unknown key `stepps`; did you mean `steps`?"])]
#[case::schedule("epochs = 8", "schedule = { steps = [0.5, 1.5] }", &["stage[0] (attack).training.schedule.steps: expected ascending shares in (0, 1), found [0.5, 1.5]"])]
fn attacks(#[case] from: &str, #[case] to: &str, #[case] fragments: &[&str]) {
    let project = project();
    project.edit("attack.toml", from, to);
    refused(&project, &["pipeline", "attack.toml"], fragments);
}

#[test]
fn environment_variables() {
    let project = project();
    for (name, fragments) in [
        ("LMR_RUN__SEDE", ["environment variable LMR_RUN__SEDE: run.sede: unknown key; did you mean `seed`?"]),
        ("LMR_SEED", ["environment variable LMR_SEED: expected a section and a key, as in LMR_RUN__SEED=1"]),
    ] {
        let run: Finished = project.command(RUN).env(name, "1").output().unwrap().into();
        explained(&run, 2, &fragments);
    }
}

#[test]
fn all_problems_at_once() {
    let project = project();
    project.edit("pipeline.toml", "seed = 0", "sede = 0\ndevice = \"gpu\"");
    project.edit("pipeline.toml", "classes = 4", "classes = 10");
    project.edit("pipeline.toml", "model.safetensors", "nowhere.safetensors");
    project.edit("pipeline.toml", "count = 40", "count = 0");
    project.edit("pipeline.toml", "target = 0", "target = 12");
    project.edit("pipeline.toml", "stop-accuracy = 0.1", "stop-acuracy = 0.1");
    project.edit("pipeline.toml", "min-steps = 20", "min-steps = -1, lr = \"fast\"");
    project.edit("pipeline.toml", "from = \"purify\"", "from = \"purfy\"");
    let keys = [
        "10 problems, nothing was run:",
        "run.sede",
        "run.device",
        "model.classes",
        "model.weights.path",
        "data.clean.count",
        "trigger.target",
        "stage[1] (estimate).stop-acuracy",
        "stage[1] (estimate).training.min-steps",
        "stage[1] (estimate).training.lr",
        "stage[6] (quantize).from",
    ];
    refused(&project, RUN, &keys);
    let message = project.run(RUN).stderr;
    assert!(message.lines().skip(1).all(|line| line.starts_with("  pipeline.toml: ")), "{message}");
}

fn with(name: &str, tensor: Tensor) -> StateDict {
    let mut state = fresh_state(2);
    state.insert(name.into(), tensor);
    state
}

fn without(name: &str) -> StateDict {
    let mut state = fresh_state(2);
    state.remove(name).unwrap();
    state
}

fn bias(value: f32) -> Tensor {
    Tensor::new(&[0f32, 0.0, 0.0, value], &Device::Cpu).unwrap()
}

#[rstest]
#[case::another_width(fresh_state(3), &["does not fit the model", "conv1.weight: expected [2, 1, 3, 3]"])]
#[case::another_shape(with("fc.bias", Tensor::zeros(5, DType::F32, &Device::Cpu).unwrap()), &["fc.bias: expected [4] of floats, found [5]"])]
#[case::missing(without("layer4.1.conv2.weight"), &["1 missing: layer4.1.conv2.weight"])]
#[case::unexpected(with("head.bias", bias(0.0)), &["1 unexpected: head.bias"])]
#[case::nan(with("fc.bias", bias(f32::NAN)), &["tensor `fc.bias`: 1 of 4 values are NaN or infinite"])]
#[case::dtype(with("fc.bias", bias(0.0).to_dtype(DType::U8).unwrap()), &["fc.bias: expected [4] of floats, found [4] of u8"])]
#[case::counter(with("bn1.num_batches_tracked", Tensor::zeros(2, DType::I64, &Device::Cpu).unwrap()), &["bn1.num_batches_tracked: expected one integer, found [2]"])]
fn checkpoints(#[case] state: StateDict, #[case] fragments: &[&str]) {
    let project = project();
    project.write_weights(state);
    refused(&project, RUN, &[&["model.safetensors: "], fragments].concat());
}

#[rstest]
#[case::empty(|_: &[u8]| Vec::new(), "has 0 bytes")]
#[case::text(|_: &[u8]| b"these are no weights at all".to_vec(), "no safetensors file")]
#[case::cut_in_the_header(|bytes: &[u8]| bytes[..100].to_vec(), "is cut off")]
#[case::cut_in_the_tensors(|bytes: &[u8]| bytes[..bytes.len() - 100].to_vec(), "is cut off or damaged")]
#[case::too_long(|bytes: &[u8]| [bytes, &b"more"[..]].concat(), "damaged")]
#[case::huge_header(|bytes: &[u8]| [&(1u64 << 60).to_le_bytes()[..], &bytes[8..]].concat(), "the header should have")]
#[case::offsets(|bytes: &[u8]| String::from_utf8_lossy(bytes).replacen("data_offsets\":[0,", "data_offsets\":[9,", 1).into_bytes(), "model.safetensors")]
fn checkpoint_bytes(#[case] damage: fn(&[u8]) -> Vec<u8>, #[case] fragment: &str) {
    let project = project();
    let damaged = damage(&project.read("model.safetensors"));
    project.write("model.safetensors", damaged);
    refused(&project, RUN, &["model.safetensors: ", fragment]);
}

#[test]
fn a_checkpoint_that_no_memory_holds() {
    let project = project();
    let file = fs::File::create(project.path().join("model.safetensors")).unwrap();
    file.set_len(1 << 40).unwrap();
    refused(&project, RUN, &["model.safetensors: has 1099511627776 bytes; expected at most"]);
}

#[test]
fn a_checkpoint_that_is_a_folder() {
    let project = project();
    fs::remove_file(project.path().join("model.safetensors")).unwrap();
    fs::create_dir(project.path().join("model.safetensors")).unwrap();
    refused(
        &project,
        RUN,
        &["model.safetensors: has no checkpoint; expected model.safetensors or another .safetensors"],
    );
}

#[rstest]
#[case::cut_off("datasets/tiny/test-images", idx(&[160, 8, 8], &[0; 100]), &["test-images", "cut off or damaged"])]
#[case::another_size("datasets/tiny/test-images", idx(&[160, 9, 8], &[0; 160 * 72]), &["test-images", "9x8", "8x8"])]
#[case::no_images("datasets/tiny/test-images", b"PNG".to_vec(), &["test-images"])]
#[case::empty("datasets/tiny/test-images", Vec::new(), &["test-images"])]
#[case::label_out_of_range("datasets/tiny/test-labels", idx(&[160], &[4; 160]), &["test-labels", "found class 4, expected 0 to 3"])]
#[case::too_few_labels("datasets/tiny/test-labels", idx(&[100], &[0; 100]), &["test-labels", "100 labels", "160"])]
fn data_files(#[case] file: &str, #[case] content: Vec<u8>, #[case] fragments: &[&str]) {
    let project = project();
    project.write(file, content);
    refused(&project, RUN, &[&["data `tiny`"], fragments].concat());
}

#[test]
fn a_data_file_that_is_missing() {
    let project = project();
    fs::remove_file(project.path().join("datasets/tiny/test-labels")).unwrap();
    refused(&project, RUN, &["data `tiny`", "test-labels"]);
}

#[test]
fn an_image_that_cannot_be_read() {
    let project = project();
    let text = String::from_utf8(project.read("datasets/tiny.toml")).unwrap();
    let head = text.split("[test]").next().unwrap();
    let source = "[test]\nkind = \"parquet\"\nrepo = \"someone/tiny\"\nrevision = \"0123456789012345678901234567890123456789\"\n\
                  image-column = \"image\"\nlabel-column = \"label\"\nfiles = [{ path = \"test.parquet\" }]\n";
    project.write("datasets/tiny.toml", format!("{head}{source}"));
    project.write("images/test.parquet", b"PAR1 but nothing else");
    let run = [RUN, &["--set", "data.root=images"]].concat();
    refused(&project, &run, &["data `tiny`", "test.parquet"]);
}

#[rstest]
#[case::deviation("std = [0.25]", "std = [0.0]", &["tiny.toml", "normalization.std", "found 0"])]
#[case::unknown_key("title", "titel", &["tiny.toml", "titel"])]
#[case::no_split("[train]\nkind = \"idx\"\nimages = \"tiny/train-images\"\nlabels = \"tiny/train-labels\"\n", "", &["data.train.split: the dataset tiny has no train split"])]
fn descriptors(#[case] from: &str, #[case] to: &str, #[case] fragments: &[&str]) {
    let project = project();
    project.edit("datasets/tiny.toml", from, to);
    refused(&project, &["pipeline", "attack.toml"], fragments);
}

// What only shows while running: exit code 1.

#[test]
fn a_loss_that_is_no_number() {
    let project = project();
    let run = project.run(&[RUN, &["--set", "stage.logit-repel.training.lr=1e30"]].concat());
    explained(&run, 1, &["stage[2] (logit-repel): ", " is ", " at step "]);
    assert!(!project.path().join("runs/tiny/02-logit-repel/outcome.json").exists());
    assert!(!project.path().join("runs/tiny/report.json").exists());
    assert!(!project.files().iter().any(|file| file.to_string_lossy().contains(".partial-")));
}

#[test]
fn a_run_folder_that_is_a_file() {
    let project = project();
    project.write("taken", "a file");
    let run = project.run(&[RUN, &["--out", "taken"]].concat());
    explained(&run, 1, &["cannot create taken"]);
    assert_eq!(project.read("taken"), b"a file");
}

#[test]
fn a_run_folder_in_use() {
    let project = project();
    let _owner = lmr_pipeline::artifacts::RunFolder::open(&project.path().join("runs/tiny")).unwrap();
    explained(&project.run(RUN), 1, &["runs/tiny is in use by another run"]);
}
