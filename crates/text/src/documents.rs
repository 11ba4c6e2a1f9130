//! Texts and chats to calibrate on, from plain text, JSON lines or Parquet.

use serde::Deserialize;
use serde_json::Value;

use crate::{ChatTemplate, Error, Message, Speaker, parquet};

/// What divides the documents of a plain text.
const END_OF_TEXT: &str = "<|endoftext|>";

/// What one document says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A text.
    Text(String),
    /// A chat, which the model's template turns into text.
    Chat(Vec<Message>),
}

/// A document and where its file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What it says.
    pub content: Content,
    /// Its line, its row or its place among the documents of a plain text, from 1.
    pub place: Place,
}

/// Where a file has a document, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// So many documents are divided off before it.
    Document(usize),
    /// A line of JSON lines.
    Line(usize),
    /// A row of a Parquet file.
    Row(usize),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Document(at) => write!(f, "document {at}"),
            Self::Line(at) => write!(f, "line {at}"),
            Self::Row(at) => write!(f, "row {at}"),
        }
    }
}

/// The documents of a file.
///
/// ```
/// use bitmill_text::{Content, Documents};
/// let lines = "{\"text\": \"Hi\"}\n{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}\n";
/// let documents = Documents::from_jsonl("two.jsonl", lines.as_bytes())?;
/// assert_eq!(documents.items[0].content, Content::Text("Hi".to_owned()));
/// assert!(matches!(&documents.items[1].content, Content::Chat(messages) if messages.len() == 1));
/// # Ok::<(), bitmill_text::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents {
    /// The file, as errors name it.
    pub file: String,
    /// In the file's order.
    pub items: Vec<Document>,
}

impl Documents {
    /// Reads a file by what its name ends in: `.jsonl`, `.ndjson` or `.json` are JSON lines, `.parquet` is Parquet, all
    /// else is plain text.
    ///
    /// # Errors
    /// As the reader of its form.
    pub fn from_bytes(file: &str, bytes: &[u8]) -> Result<Self, Error> {
        let ending = file.rsplit_once('.').map_or("", |(_, ending)| ending).to_ascii_lowercase();
        match ending.as_str() {
            "jsonl" | "ndjson" | "json" => Self::from_jsonl(file, bytes),
            "parquet" => Self::from_parquet(file, bytes),
            _ => Self::from_text(file, bytes),
        }
    }

    /// Plain text in UTF-8: one document, or several divided by `<|endoftext|>`.
    ///
    /// # Errors
    /// [`Error::NotUtf8`] with the place of the first byte that is not.
    pub fn from_text(file: &str, bytes: &[u8]) -> Result<Self, Error> {
        let text = utf8(file, bytes)?;
        let document = |(index, text): (usize, &str)| Document {
            content: Content::Text(text.to_owned()),
            place: Place::Document(index + 1),
        };
        Ok(Self { file: file.to_owned(), items: text.split(END_OF_TEXT).enumerate().map(document).collect() })
    }

    /// JSON lines with `text`, or with chat `messages` of `role` and `content`. Empty lines and other keys are passed over; a
    /// line with both is a text.
    ///
    /// # Errors
    /// [`Error::DocumentLine`] naming the line that has neither or is no JSON; [`Error::NotUtf8`].
    pub fn from_jsonl(file: &str, bytes: &[u8]) -> Result<Self, Error> {
        let mut items = Vec::new();
        for (index, line) in utf8(file, bytes)?.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let place = Place::Line(index + 1);
            let wrong = |problem: String| Error::DocumentLine { file: file.to_owned(), place, problem };
            let line: Line = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
            items.push(Document { content: line.content().map_err(wrong)?, place });
        }
        Ok(Self { file: file.to_owned(), items })
    }

    /// The `text` column of a Parquet file, or else its `messages`: a list of groups of `role` and `content`.
    ///
    /// # Errors
    /// [`Error::Parquet`] if it is damaged or has no such column; [`Error::DocumentLine`] naming a row whose messages have
    /// another form.
    pub fn from_parquet(file: &str, bytes: &[u8]) -> Result<Self, Error> {
        let rows = parquet::read(bytes)
            .map_err(|problem| Error::Parquet { file: file.to_owned(), problem: problem.to_string() })?;
        let mut items = Vec::new();
        for (index, row) in rows.into_iter().enumerate() {
            let place = Place::Row(index + 1);
            let wrong = |problem: String| Error::DocumentLine { file: file.to_owned(), place, problem };
            let content = match row {
                parquet::Row::Text(text) => Content::Text(text.unwrap_or_default()),
                parquet::Row::Messages(messages) => {
                    let message = |(role, content): (Option<String>, Option<String>)| {
                        let role = role.ok_or("a message has no role")?;
                        Ok(Message { speaker: speaker(&role)?, content: content.unwrap_or_default() })
                    };
                    Content::Chat(
                        messages.into_iter().map(message).collect::<Result<_, String>>().map_err(wrong)?,
                    )
                }
            };
            items.push(Document { content, place });
        }
        Ok(Self { file: file.to_owned(), items })
    }

    /// Whether any document is a chat.
    pub fn has_chats(&self) -> bool {
        self.items.iter().any(|document| matches!(document.content, Content::Chat(_)))
    }

    /// The text of a document: a chat as `template` writes it, whole and without the beginning of another answer.
    ///
    /// # Errors
    /// [`Error::DocumentLine`] naming the chat that the template refuses.
    ///
    /// # Panics
    /// If it is a chat and there is no template.
    pub fn render(&self, document: &Document, template: Option<&ChatTemplate>) -> Result<String, Error> {
        match &document.content {
            Content::Text(text) => Ok(text.clone()),
            Content::Chat(messages) => {
                let template = template.expect("a template for chats");
                template.render(messages, false).map_err(|error| Error::DocumentLine {
                    file: self.file.clone(),
                    place: document.place,
                    problem: error.to_string(),
                })
            }
        }
    }
}

/// One JSON line.
#[derive(Deserialize)]
struct Line {
    text: Option<String>,
    messages: Option<Vec<LineMessage>>,
}

#[derive(Deserialize)]
struct LineMessage {
    role: String,
    content: Value,
}

impl Line {
    fn content(self) -> Result<Content, String> {
        match (self.text, self.messages) {
            (Some(text), _) => Ok(Content::Text(text)),
            (None, Some(messages)) => {
                let message = |message: LineMessage| {
                    Ok(Message { speaker: speaker(&message.role)?, content: said(&message.content)? })
                };
                messages.into_iter().map(message).collect::<Result<_, _>>().map(Content::Chat)
            }
            (None, None) => Err("neither `text` nor `messages`".to_owned()),
        }
    }
}

fn speaker(role: &str) -> Result<Speaker, String> {
    [Speaker::System, Speaker::User, Speaker::Assistant]
        .into_iter()
        .find(|speaker| speaker.name() == role)
        .ok_or_else(|| format!("the role `{role}` is none of system, user and assistant"))
}

/// What a message says: a text, or a list of parts with a text each.
fn said(content: &Value) -> Result<String, String> {
    let part = |part: &Value| part.get("text").and_then(Value::as_str).map(str::to_owned);
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => parts.iter().map(part).collect::<Option<String>>(),
        _ => None,
    }
    .ok_or_else(|| "the content of a message is no text".to_owned())
}

/// `bytes` as text, less a byte order mark.
fn utf8<'b>(file: &str, bytes: &'b [u8]) -> Result<&'b str, Error> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        let line = 1 + bytes[..at].iter().filter(|byte| **byte == b'\n').count();
        Error::NotUtf8 { file: file.to_owned(), line, at }
    })?;
    Ok(text.trim_start_matches('\u{feff}'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TemplateTokens;

    fn problem(lines: &str) -> String {
        Documents::from_jsonl("c.jsonl", lines.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_text_is_divided_where_it_says_so() {
        let documents = Documents::from_bytes("a.txt", "\u{feff}one\n<|endoftext|>two".as_bytes()).unwrap();
        let texts: Vec<_> = documents.items.iter().map(|d| documents.render(d, None).unwrap()).collect();
        assert_eq!(texts, ["one\n", "two"]);
        assert_eq!(documents.items[1].place, Place::Document(2));
    }

    #[test]
    fn lines_are_texts_or_chats_and_messages_may_come_in_parts() {
        let lines = concat!(
            "\n{\"text\": \"a\", \"messages\": [], \"id\": 3}\r\n",
            r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "u"}, {"text": "v"}]}]}"#
        );
        let documents = Documents::from_bytes("c.JSONL", lines.as_bytes()).unwrap();
        assert_eq!(documents.items[0].place, Place::Line(2));
        assert_eq!(documents.items[0].content, Content::Text("a".into()));
        assert!(documents.has_chats());
        let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
        let template = ChatTemplate::new(source, TemplateTokens::default()).unwrap();
        assert_eq!(documents.render(&documents.items[1], Some(&template)).unwrap(), "<system>s<user>uv");
    }

    #[test]
    fn names_the_line_of_each_mistake() {
        let good = "{\"text\": \"a\"}\n";
        assert!(problem(&format!("{good}\n{{\"text\": ")).starts_with("c.jsonl, line 3: "));
        assert_eq!(problem(&format!("{good}{{}}")), "c.jsonl, line 2: neither `text` nor `messages`");
        assert!(problem("[]").starts_with("c.jsonl, line 1: "));
        assert!(problem("{\"text\": 7}").contains("invalid type"));
        assert_eq!(
            problem(r#"{"messages": [{"role": "tool", "content": "x"}]}"#),
            "c.jsonl, line 1: the role `tool` is none of system, user and assistant"
        );
        assert!(problem(r#"{"messages": [{"role": "user", "content": null}]}"#).contains("no text"));
        assert!(
            problem(r#"{"messages": [{"role": "user", "content": [{"image": 1}]}]}"#).contains("no text")
        );
    }

    #[test]
    fn names_the_first_byte_that_is_no_utf8() {
        let error = Documents::from_text("a.txt", b"ab\nc\xff").unwrap_err();
        assert_eq!(error.to_string(), "a.txt, line 2: byte 4 of the file is no UTF-8");
    }

    #[test]
    fn a_refused_chat_is_named_with_the_templates_words() {
        let lines = "\n{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}";
        let documents = Documents::from_jsonl("c.jsonl", lines.as_bytes()).unwrap();
        let source = "{{ raise_exception('no system message') }}";
        let template = ChatTemplate::new(source, TemplateTokens::default()).unwrap();
        let error = documents.render(&documents.items[0], Some(&template)).unwrap_err().to_string();
        assert_eq!(error, "c.jsonl, line 2: the chat template: line 1: no system message");
    }
}
