//! Renders a chat template: `render_template TEMPLATE.jinja CHAT.json`.
//!
//! CHAT.json: `{"messages": [{"role": "user", "content": "…"}], "add_generation_prompt": true, "bos_token": "…",
//! "eos_token": "…"}`. The text goes to stdout as it is.

use std::error::Error;

use bitmill_text::{ChatTemplate, Message, Speaker, TemplateTokens};
use serde_json::Value;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(template), Some(chat)) = (arguments.next(), arguments.next()) else {
        return Err("usage: render_template TEMPLATE.jinja CHAT.json".into());
    };
    let chat: Value = serde_json::from_str(&std::fs::read_to_string(chat)?)?;
    let token = |name: &str| chat[name].as_str().map(str::to_owned);
    let tokens =
        TemplateTokens { bos: token("bos_token"), eos: token("eos_token"), ..TemplateTokens::default() };
    let mut messages = Vec::new();
    for message in chat["messages"].as_array().into_iter().flatten() {
        let speaker = [Speaker::System, Speaker::User, Speaker::Assistant]
            .into_iter()
            .find(|speaker| message["role"] == speaker.name())
            .ok_or("a role is system, user or assistant")?;
        let content = message["content"].as_str().unwrap_or_default().to_owned();
        messages.push(Message { speaker, content });
    }
    let template = ChatTemplate::new(&std::fs::read_to_string(template)?, tokens)?;
    let text = template.render(&messages, chat["add_generation_prompt"] == true)?;
    #[allow(clippy::print_stdout, reason = "printing is all this example does")]
    {
        print!("{text}");
    }
    Ok(())
}
