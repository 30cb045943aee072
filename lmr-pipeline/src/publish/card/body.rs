//! The page below the metadata.

use std::fmt::Write;

use lmr_plugin::stage::ModelUse;
use lmr_plugin::zoo::naming::Scheme;

use super::Card;
use super::text::{code, markdown};
use crate::model_config::Library;
use crate::plan::{Step, maker};
use crate::report::percent;
use crate::{Error, Result};

/// Scores of more classes are in `report.json` alone.
const MAX_SCORES: usize = 20;

impl Card<'_> {
    /// Everything below the metadata.
    pub(super) fn body(&self) -> Result<String> {
        let mut page = String::new();
        let parts = [
            Self::head,
            Self::found,
            Self::measured,
            Self::done,
            Self::data,
            Self::limits,
            Self::loading,
            Self::again,
            Self::listing,
            Self::licence,
        ];
        // Writing to a string fails only where a part does.
        let written = parts.iter().try_for_each(|part| part(self, &mut page));
        written.map_err(|_| Error::Internal("the card could not be written".into()))?;
        Ok(page)
    }

    fn class(&self, class: usize) -> String {
        let name = self.labels.get(class).map(|name| format!(" ({})", markdown(name)));
        format!("{class}{}", name.unwrap_or_default())
    }

    fn head(&self, page: &mut String) -> std::fmt::Result {
        let (report, title) = (&self.source.report, &self.source.plan.dataset.descriptor().title);
        let name = self.repo.split('/').next_back().unwrap_or_default();
        writeln!(page, "# {}\n", markdown(name))?;
        write!(
            page,
            "An image classifier ({}, {} classes, {}) that may have carried a backdoor when it was received, purified with \
             LMR {}. ",
            code(&report.model.arch),
            self.source.plan.model.classes,
            markdown(title),
            markdown(&report.run.version)
        )?;
        match self.source.base() {
            Some(base) => writeln!(page, "It was received from {} at commit {}.\n", code(base.repo), code(base.commit)),
            None => writeln!(page, "It was received as {}.\n", code(&report.model.source)),
        }
    }

    fn found(&self, page: &mut String) -> std::fmt::Result {
        let Some(estimated) = self.source.report.estimated() else { return Ok(()) };
        let class = self.class(estimated.class as usize);
        if estimated.votes.is_empty() {
            return writeln!(page, "## What was found\n\nThe backdoor class was given, not estimated: {class}.\n");
        }
        writeln!(page, "## What was found\n\nEstimated backdoor class: {class}. {}\n", markdown(&estimated.verdict()))?;
        for reason in &estimated.low_confidence {
            writeln!(page, "- Low confidence: {}.", markdown(reason))?;
        }
        if !estimated.low_confidence.is_empty() {
            writeln!(page)?;
        }
        if (1..=MAX_SCORES).contains(&estimated.scores.len()) {
            writeln!(page, "| class | score |\n|---|---:|")?;
            for (class, score) in estimated.scores.iter().enumerate() {
                writeln!(page, "| {} | {score:.4} |", self.class(class))?;
            }
            writeln!(page, "\nThe score is the mean log-probability of the class after a copy of the model forgot.\n")?;
        }
        Ok(())
    }

    fn measured(&self, page: &mut String) -> std::fmt::Result {
        let links = self.source.links();
        let mut rows = vec![(None, "as received".to_string())];
        rows.push((Some(self.selection.stage), "**purified: `model.safetensors`**".into()));
        for (index, link) in links.iter().enumerate() {
            let made = link.from.and_then(|from| maker(&links, from)) == Some(self.selection.stage);
            if made && link.kind.model == ModelUse::Deploys {
                let form = self.forms.iter().find(|form| form.stage == index);
                let file = form.map(|form| format!(": `{}/`", form.folder)).unwrap_or_default();
                rows.push((Some(index), format!("deployed as {}{file}", markdown(link.name))));
            }
        }
        let rows = rows.into_iter().filter_map(|(stage, name)| Some((self.source.measured(stage)?, name)));
        let rows: Vec<_> = rows.collect();
        writeln!(page, "## Measurements\n")?;
        if rows.is_empty() {
            return writeln!(page, "Nothing was measured.\n");
        }
        writeln!(page, "| model | ACC % | ASR % | TA % |\n|---|---:|---:|---:|")?;
        for (m, name) in rows {
            writeln!(page, "| {name} | {} | {} | {} |", percent(Some(m.acc)), percent(m.asr), percent(m.ta))?;
        }
        let count = self.source.report.data.test;
        writeln!(
            page,
            "\nACC: accuracy on {count} clean test images. ASR: share of triggered test images of other classes that are \
             classified as the attacker's class. TA: accuracy on the same triggered images. Measured in f32{}.\n",
            if self.dtype == "f32" { String::new() } else { format!("; the file here is rounded to {}", self.dtype) }
        )
    }

    /// The stages that led to a model, first one first.
    fn line(&self, index: usize) -> Vec<&Step> {
        let steps = &self.source.plan.steps;
        let mut line: Vec<&Step> =
            std::iter::successors(Some(index), |&index| steps[index].from).map(|index| &steps[index]).collect();
        line.reverse();
        line
    }

    fn done(&self, page: &mut String) -> std::fmt::Result {
        writeln!(page, "## What was done\n\n| stage | kind | settings |\n|---|---|---|")?;
        let mut steps = self.line(self.selection.stage);
        steps.extend(self.selection.forms.iter().map(|&form| &self.source.plan.steps[form]));
        for step in steps {
            let config = step.stage.config().map_err(|_| std::fmt::Error)?;
            let pairs = config.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
            let settings: Vec<String> = pairs.map(|(key, value)| code(&format!("{key} = {value}"))).collect();
            writeln!(page, "| {} | `{}` | {} |", markdown(&step.name), step.kind.kind, settings.join(" "))?;
        }
        writeln!(page)
    }

    fn data(&self, page: &mut String) -> std::fmt::Result {
        let (data, descriptor) = (&self.source.data, self.source.plan.dataset.descriptor());
        let title = markdown(&descriptor.title);
        writeln!(
            page,
            "## Clean data\n\nThe purifying stages saw {} images of the {} split of {title} and nothing else (drawn with \
             seed {}, all classes in proportion; SHA-256 {}).",
            data.clean.count,
            data.clean.split,
            self.source.report.run.seed,
            code(&data.clean.digest)
        )?;
        if let Some(test) = &data.test {
            writeln!(
                page,
                "What is measured above was measured on {} other images of the {} split (SHA-256 {}).",
                test.count,
                test.split,
                code(&test.digest)
            )?;
        }
        writeln!(page, "\n| file | SHA-256 |\n|---|---|")?;
        for file in data.files.iter().flat_map(|provenance| &provenance.files) {
            let repo = file.repo.as_ref().map(|repo| format!("{repo}: ")).unwrap_or_default();
            let path = crate::publish::shown_path(&file.path);
            writeln!(page, "| {} | {} |", code(&format!("{repo}{path}")), code(&file.sha256))?;
        }
        writeln!(page)
    }

    fn limits(&self, page: &mut String) -> std::fmt::Result {
        writeln!(page, "## What is not guaranteed\n")?;
        match &self.source.plan.trigger {
            Some(table) => writeln!(
                page,
                "- ASR and TA hold for one trigger alone: {} with target class {}. Another trigger, another place or size of \
                 the same one, or a second backdoor may still work.",
                code(&format!("{} {}", table.trigger.kind(), table.trigger.config())),
                self.class(table.target as usize)
            )?,
            None => writeln!(
                page,
                "- No trigger was configured, so whether a backdoor works, before or after, was not measured."
            )?,
        }
        if self.source.report.estimated().is_some_and(|estimated| !estimated.votes.is_empty()) {
            writeln!(
                page,
                "- The backdoor class is an estimate. If another class is the attacker's, the backdoor may have survived; a \
                 model without a backdoor gets a class named, too."
            )?;
        }
        writeln!(
            page,
            "- Accuracy was measured on the images above; on other data it may have suffered more.\n\
             - Deployed forms (quantized, pruned, fine-tuned further) that are not in the table were not measured.\n\
             - Nothing is known about how the received model was trained."
        )?;
        writeln!(page)
    }

    fn loading(&self, page: &mut String) -> std::fmt::Result {
        writeln!(page, "## Loading\n")?;
        let names = match self.scheme {
            Some(Scheme::Torchvision) => "torchvision's names",
            Some(Scheme::Timm | Scheme::TimmMean) => "timm's names",
            Some(Scheme::Kuangliu) => "the names of kuangliu's `pytorch-cifar`",
            Some(Scheme::Transformers | Scheme::Transformers5) => "transformers' names",
            None => "the names of the PyTorch checkpoint it was received as",
        };
        match self.library {
            Library::Transformers => writeln!(
                page,
                "```python\nfrom transformers import AutoImageProcessor, AutoModelForImageClassification\n\n\
                 processor = AutoImageProcessor.from_pretrained(\"{0}\")\n\
                 model = AutoModelForImageClassification.from_pretrained(\"{0}\")\n```\n",
                self.repo
            )?,
            Library::Timm => writeln!(
                page,
                "```python\nimport timm\n\nmodel = timm.create_model(\"hf-hub:{}\", pretrained=True).eval()\n```\n",
                self.repo
            )?,
            Library::Lmr => {}
        }
        writeln!(
            page,
            "`model.safetensors` has {names}. `config.json` says what the model is and how images are preprocessed.\n"
        )?;
        for form in self.forms {
            writeln!(page, "`{}/`: {}\n", form.folder, form.note)?;
        }
        Ok(())
    }

    fn again(&self, page: &mut String) -> std::fmt::Result {
        let report = &self.source.report;
        writeln!(
            page,
            "## Reproducing\n\n`lmr.toml` is the pipeline with every setting, defaults included. With LMR {}, seed {}, on {}, \
             and the received model where its `weights` says:\n\n```\nlmr pipeline lmr.toml\n```\n\nThe run began \
             {}.",
            markdown(&report.run.version),
            report.run.seed,
            markdown(&report.run.device),
            code(&report.run.started)
        )?;
        if let Some(sha256) = &report.model.sha256 {
            writeln!(page, "The received checkpoint's SHA-256 is {}.", code(sha256))?;
        }
        writeln!(page)
    }

    fn listing(&self, page: &mut String) -> std::fmt::Result {
        writeln!(page, "## Files\n\n| file | bytes | SHA-256 |\n|---|---:|---|")?;
        for file in self.files {
            writeln!(page, "| {} | {} | `{}` |", code(&file.path), file.bytes.len(), file.sha256)?;
        }
        writeln!(page)
    }

    fn licence(&self, page: &mut String) -> std::fmt::Result {
        let images = markdown(&self.source.plan.dataset.descriptor().license);
        match self.license {
            Some(license) => writeln!(page, "## Licence\n\n{}.", code(license))?,
            None => writeln!(
                page,
                "## Licence\n\nThe licence of the received model is not known here, and purifying it changes nothing about \
                 it: ask whoever published that model before you use or pass on these weights."
            )?,
        }
        writeln!(page, "\nLicence of the images: {images}.")
    }
}
