//! Some of a data set's classes, in an order of one's own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Descriptor;
use crate::problem::nearest;

/// A class as a pipeline names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ClassChoice {
    /// Its place among the classes of the descriptor, from 0.
    Index(usize),
    /// Its name or its id, such as WordNet's.
    Name(String),
}

/// The classes that a data set had before others were left out.
#[derive(Clone, Debug)]
pub(super) struct Subset {
    /// Names of all classes.
    pub classes: Vec<String>,
    /// Other names of them.
    pub ids: Vec<String>,
    /// Which of them are left, in their new order.
    pub chosen: Vec<u32>,
}

impl Subset {
    /// Leaves these classes in a descriptor, or says what is wrong with them.
    pub fn choose(descriptor: &mut Descriptor, choices: &[ClassChoice]) -> Result<Self, Vec<String>> {
        let (classes, ids) = (descriptor.classes.clone(), descriptor.class_ids.clone());
        let (mut chosen, mut faults) = (Vec::new(), Vec::new());
        for choice in choices {
            match find(&classes, &ids, choice) {
                Ok(class) if chosen.contains(&(class as u32)) => {
                    faults.push(format!("`{}` is named twice", classes[class]));
                }
                Ok(class) => chosen.push(class as u32),
                Err(fault) => faults.push(fault),
            }
        }
        if choices.len() < 2 {
            faults.push(format!("expected at least 2 classes, found {}", choices.len()));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let pick = |names: &[String]| chosen.iter().filter_map(|class| names.get(*class as usize).cloned()).collect();
        (descriptor.classes, descriptor.class_ids) = (pick(&classes), pick(&ids));
        Ok(Self { classes, ids, chosen })
    }
}

fn find(classes: &[String], ids: &[String], choice: &ClassChoice) -> Result<usize, String> {
    match choice {
        ClassChoice::Index(index) if *index < classes.len() => Ok(*index),
        ClassChoice::Index(index) => Err(format!("expected a class below {}, found {index}", classes.len())),
        ClassChoice::Name(name) => {
            let named =
                |names: &[String]| -> Vec<usize> { (0..names.len()).filter(|at| names[*at] == *name).collect() };
            let found = [named(ids), named(classes)].concat();
            let all = ids.iter().chain(classes).map(String::as_str);
            found.first().copied().ok_or_else(|| match nearest(name, all) {
                Some(near) => format!("there is no class `{name}`; did you mean `{near}`?"),
                None => format!("there is no class `{name}`; expected a name, an id or an index"),
            })
        }
    }
}
