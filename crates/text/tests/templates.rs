//! Chat templates: what transformers makes of them, and what they ask of a vocabulary.

use bitmill_checkpoint::{Checkpoint, Region};
use bitmill_testkit::{Variant, millet, tiny};
use bitmill_text::{ChatTemplate, Error, Message, Speaker, TemplateTokens, Tokenizer};
use serde_json::{Value, json};

fn messages(chat: &Value) -> Vec<Message> {
    let speakers = [Speaker::System, Speaker::User, Speaker::Assistant];
    let message = |message: &Value| Message {
        speaker: speakers.into_iter().find(|speaker| message["role"] == speaker.name()).unwrap(),
        content: message["content"].as_str().unwrap().to_owned(),
    };
    chat.as_array().unwrap().iter().map(message).collect()
}

#[test]
fn texts_equal_those_of_transformers() {
    let golden: Value = serde_json::from_str(include_str!("golden/templates.json")).unwrap();
    let token = |name: &str| golden["tokens"][name].as_str().map(str::to_owned);
    let (mut written, mut refused) = (0, 0);
    for case in golden["cases"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let tokens =
            TemplateTokens { bos: token("bos_token"), eos: token("eos_token"), ..TemplateTokens::default() };
        let mut template = ChatTemplate::new(golden["templates"][name].as_str().unwrap(), tokens).unwrap();
        for (name, value) in case["set"].as_object().unwrap() {
            template.set(name, value.clone());
        }
        let found = template.render(&messages(&case["messages"]), case["add_generation_prompt"] == true);
        match case["text"].as_str() {
            Some(text) => {
                assert_eq!(found.unwrap(), text, "{case}");
                written += 1;
            }
            None => {
                let (error, reason) = (found.unwrap_err().to_string(), case["refused"].as_str().unwrap());
                assert!(error.contains(reason), "{error}: {reason}");
                refused += 1;
            }
        }
    }
    assert_eq!((written, refused), (63, 2));
}

#[test]
fn a_long_chat_takes_a_small_part_of_the_fuel() {
    let golden: Value = serde_json::from_str(include_str!("golden/templates.json")).unwrap();
    let source = golden["templates"]["qwen3"].as_str().unwrap();
    let template = ChatTemplate::new(source, TemplateTokens::default()).unwrap();
    let turn = |i: usize| Message {
        speaker: if i.is_multiple_of(2) { Speaker::User } else { Speaker::Assistant },
        content: "a thousand characters or so ".repeat(40),
    };
    let text = template.render(&(0..4000).map(turn).collect::<Vec<_>>(), true).unwrap();
    assert!(text.len() > 4000 * 1000);
}

#[test]
fn millets_own_template_ends_an_answer_with_its_token() {
    let checkpoint = Checkpoint::open(&millet().join("model")).unwrap();
    let tokenizer = Tokenizer::from_checkpoint(&checkpoint).unwrap();
    let template = ChatTemplate::from_checkpoint(&checkpoint, &tokenizer).unwrap();
    let text =
        template.render(&[Message { speaker: Speaker::User, content: "Hi".to_owned() }], true).unwrap();
    assert_eq!(text, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(template.turn_end(&tokenizer), tokenizer.id_of("<|im_end|>"));
    assert!(tokenizer.is_special(1919) && !tokenizer.is_special(24));
    let bare = ChatTemplate::for_tokenizer("{{ messages[0].content }}", &tokenizer).unwrap();
    assert_eq!(bare.turn_end(&tokenizer), None);
}

#[test]
fn a_template_for_another_vocabulary_is_refused_by_its_token() {
    let checkpoint = Checkpoint::open(&millet().join("model")).unwrap();
    let tokenizer = Tokenizer::from_checkpoint(&checkpoint).unwrap();
    let source = "{{ '<|im_start|>' }}{% if messages %}<|start_header_id|>{% endif %}";
    let error = ChatTemplate::for_tokenizer(source, &tokenizer).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the chat template writes `<|start_header_id|>`, which the vocabulary lacks"
    );
    assert!(error.hint().unwrap().contains("--template"));
    // What a user says is the user's.
    let plain = ChatTemplate::for_tokenizer("{{ messages[0].content }}", &tokenizer).unwrap();
    let said = Message { speaker: Speaker::User, content: "<|nonsense|>".to_owned() };
    assert_eq!(plain.render(&[said], true).unwrap(), "<|nonsense|>");
}

#[test]
fn a_model_without_a_template_says_so() {
    let folder = tiny(Variant::Llama);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let tokenizer = Tokenizer::from_checkpoint(&checkpoint).unwrap();
    let error = ChatTemplate::from_checkpoint(&checkpoint, &tokenizer).unwrap_err();
    assert!(matches!(error, Error::NoTemplate { .. }), "{error}");
    assert!(error.hint().unwrap().contains("generate"));
}

#[test]
fn templates_see_the_special_tokens_that_are_there() {
    let own = |name: &str| Region::from_vec(std::fs::read(millet().join("model").join(name)).unwrap());
    let mut files: Vec<(String, Region)> = ["config.json", "model.safetensors", "tokenizer.json"]
        .map(|name| (name.to_owned(), own(name)))
        .into();
    let config = json!({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template":
        "{{ bos_token }}{{ eos_token }}{{ unk_token is defined }}{{ messages | length }}"});
    files.push(("tokenizer_config.json".to_owned(), Region::from_vec(config.to_string().into_bytes())));
    let checkpoint = Checkpoint::from_files("test", files).unwrap();
    let tokenizer = Tokenizer::from_checkpoint(&checkpoint).unwrap();
    let template = ChatTemplate::from_checkpoint(&checkpoint, &tokenizer).unwrap();
    assert_eq!(template.render(&[], false).unwrap(), "<|im_start|><|im_end|>False0");
}
