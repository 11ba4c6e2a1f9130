//! Multiple-choice items, one JSON object a line.

use std::path::Path;

use serde::Deserialize;

use crate::Error;

/// One question: which of `choices` continues `context`?
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Item {
    /// What comes before each choice; may be empty. `prompt` in some files.
    #[serde(alias = "prompt")]
    pub context: String,
    /// The continuations, each with the space it begins with.
    pub choices: Vec<String>,
    /// Index of the right choice.
    pub answer: usize,
}

/// A named list of items.
///
/// ```
/// use bitmill_text::Task;
/// let line = r#"{"context": "2 + 2 =", "choices": [" 5", " 4"], "answer": 1}"#;
/// let task = Task::from_jsonl("sums", line)?;
/// assert_eq!(task.items[0].choices[1], " 4");
/// # Ok::<(), bitmill_text::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// What the report calls it.
    pub name: String,
    /// The questions.
    pub items: Vec<Item>,
}

impl Task {
    /// Reads JSON lines; empty lines and keys beyond `context` (or `prompt`), `choices`, `answer` are passed over.
    ///
    /// # Errors
    /// [`Error::TaskLine`] naming the line that is no item; [`Error::EmptyTask`] if there is none.
    pub fn from_jsonl(name: &str, text: &str) -> Result<Self, Error> {
        Self::parse(name, name, text)
    }

    /// Reads the file `path`; the task is called as the file is, less its extension.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, or what [`from_jsonl`](Self::from_jsonl) says of its content.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Io {
            action: "read the task",
            path: path.to_owned(),
            source,
        })?;
        let name = path.file_stem().map_or_else(|| "task".into(), |stem| stem.to_string_lossy().into_owned());
        Self::parse(&name, &path.display().to_string(), &text)
    }

    fn parse(name: &str, file: &str, text: &str) -> Result<Self, Error> {
        let mut items = Vec::new();
        // A byte order mark is no part of the first item.
        for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let wrong = |problem: String| Error::TaskLine { file: file.to_owned(), line: index + 1, problem };
            let item: Item = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
            if item.choices.len() < 2 {
                return Err(wrong(format!("{} choices where at least two are needed", item.choices.len())));
            }
            if let Some(empty) = item.choices.iter().position(String::is_empty) {
                return Err(wrong(format!("choice {empty} is empty, so nothing can be scored")));
            }
            if item.answer >= item.choices.len() {
                let choices = item.choices.len();
                return Err(wrong(format!("the answer is {} and there are {choices} choices", item.answer)));
            }
            items.push(item);
        }
        if items.is_empty() {
            return Err(Error::EmptyTask { file: file.to_owned() });
        }
        Ok(Self { name: name.to_owned(), items })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"context": "a", "choices": ["b", "c"], "answer": 1}"#;

    fn problem(text: &str) -> String {
        Task::from_jsonl("t", text).unwrap_err().to_string()
    }

    #[test]
    fn reads_prompt_for_context_and_ignores_other_keys() {
        let text = "\u{feff}{\"id\": 7, \"prompt\": \"\", \"choices\": [\"b\", \"c\"], \"answer\": 0}\r\n\n";
        let task = Task::from_jsonl("t", text).unwrap();
        assert_eq!(
            task.items,
            [Item { context: String::new(), choices: vec!["b".into(), "c".into()], answer: 0 }]
        );
    }

    #[test]
    fn names_the_line_of_each_mistake() {
        assert!(problem(&format!("{GOOD}\n\n{{\"context\": ")).starts_with("t, line 3: "));
        assert!(problem(r#"{"choices": ["b", "c"], "answer": 1}"#).contains("missing field `context`"));
        assert_eq!(
            problem(r#"{"context": "a", "choices": ["b", "c"], "answer": 2}"#),
            "t, line 1: the answer is 2 and there are 2 choices"
        );
        assert!(problem(r#"{"context": "a", "choices": ["b"], "answer": 0}"#).contains("at least two"));
        assert!(
            problem(r#"{"context": "a", "choices": ["b", ""], "answer": 0}"#).contains("choice 1 is empty")
        );
        assert!(
            problem(r#"{"context": "a", "choices": ["b", "c"], "answer": -1}"#).starts_with("t, line 1: ")
        );
        assert_eq!(problem("\n"), "t: no items");
    }

    #[test]
    fn reads_a_file_and_names_its_path_when_it_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("facts.jsonl");
        std::fs::write(&path, GOOD).unwrap();
        assert_eq!(Task::read(&path).unwrap().name, "facts");
        std::fs::write(&path, "nonsense").unwrap();
        assert!(Task::read(&path).unwrap_err().to_string().contains("facts.jsonl, line 1: "));
        let missing = folder.path().join("none.jsonl");
        assert!(Task::read(&missing).unwrap_err().to_string().contains("none.jsonl"));
    }
}
