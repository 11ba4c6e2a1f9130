//! Scores on multiple-choice tasks, kept in the order in which the tasks were given.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How a model did on one task.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskScore {
    /// Fraction of items whose right choice had the largest sum of log-probabilities.
    #[serde(with = "crate::finite")]
    pub accuracy: f64,
    /// The same with each choice's sum divided by its length in bytes.
    #[serde(with = "crate::finite")]
    pub accuracy_norm: f64,
    /// Items scored.
    pub n: usize,
    /// Items right here and wrong in the dense model; absent for the dense model itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gained: Option<usize>,
    /// Items wrong here and right in the dense model; absent for the dense model itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<usize>,
    /// McNemar's exact two-sided p: how likely flips at least this lopsided are if neither model is better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mcnemar_p: Option<f64>,
}

/// Task names and scores, in the order given; a JSON object.
///
/// ```
/// use bitmill_report::{TaskScore, Tasks};
/// let score = TaskScore { accuracy: 0.5, accuracy_norm: 0.5, n: 2, gained: None, lost: None, mcnemar_p: None };
/// let tasks: Tasks = [("sums".to_string(), score), ("facts".to_string(), score)].into_iter().collect();
/// assert_eq!(tasks.names().collect::<Vec<_>>(), ["sums", "facts"]);
/// assert_eq!(tasks.mean_accuracy(), Some(0.5));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tasks(Vec<(String, TaskScore)>);

impl Tasks {
    /// No tasks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a task; a name already there gets the new score and keeps its place.
    pub fn insert(&mut self, name: impl Into<String>, score: TaskScore) {
        let name = name.into();
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = score,
            None => self.0.push((name, score)),
        }
    }

    /// The score of the task called `name`.
    pub fn get(&self, name: &str) -> Option<&TaskScore> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, score)| score)
    }

    /// Names and scores in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &TaskScore)> {
        self.0.iter().map(|(name, score)| (name.as_str(), score))
    }

    /// Names in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// How many tasks there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Mean of the tasks' accuracies, each task counting the same however many items it has; none without tasks.
    pub fn mean_accuracy(&self) -> Option<f64> {
        if self.is_empty() {
            return None;
        }
        Some(self.0.iter().map(|(_, score)| score.accuracy).sum::<f64>() / self.len() as f64)
    }
}

impl FromIterator<(String, TaskScore)> for Tasks {
    fn from_iter<I: IntoIterator<Item = (String, TaskScore)>>(iter: I) -> Self {
        let mut tasks = Self::new();
        for (name, score) in iter {
            tasks.insert(name, score);
        }
        tasks
    }
}

impl Serialize for Tasks {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.len()))?;
        for (name, score) in self.iter() {
            map.serialize_entry(name, score)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Tasks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ordered;
        impl<'de> Visitor<'de> for Ordered {
            type Value = Tasks;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of task scores by name")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tasks, A::Error> {
                let mut tasks = Tasks::new();
                while let Some((name, score)) = map.next_entry::<String, TaskScore>()? {
                    tasks.insert(name, score);
                }
                Ok(tasks)
            }
        }
        deserializer.deserialize_map(Ordered)
    }
}
