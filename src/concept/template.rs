//! A concept from free text: prompts from templates, retain prompts that hold for any model.

use super::{Concept, Detect, Kind, RetainPrompt, Verify, normal};

/// `{}` is the concept; beside each template stands its anchor.
type Templates = &'static [(&'static str, &'static str)];

const OBJECT: Templates = &[
    ("{}", "a thing"),
    ("an image of {}", "an image of a thing"),
    ("a photo of {}", "a photo of a landscape"),
    ("a picture of {}", "a picture of a room"),
    ("a close-up photo of {}", "a close-up photo of a leaf"),
    ("a drawing of {}", "a drawing of a tree"),
    ("a painting of {}", "a painting of a river"),
    ("{} on a table", "a book on a table"),
    ("{} in a field", "a field"),
    ("{} on a white background", "a stone on a white background"),
    ("a black and white photo of {}", "a black and white photo of a street"),
    ("a small picture of {}", "a small picture of a house"),
];
const STYLE: Templates = &[
    ("{}", "a painting"),
    ("a painting in the style of {}", "a painting"),
    ("a landscape in the style of {}", "a photo of a landscape"),
    ("a portrait in the style of {}", "a photo of a person"),
    ("a city in the style of {}", "a drawing of a city"),
    ("a still life in the style of {}", "a photo of a bowl of fruit"),
    ("an animal in the style of {}", "a photo of an animal"),
    ("{} style", "a plain style"),
    ("a house, {}", "a house"),
    ("artwork by {}", "artwork"),
    ("a picture of a tree, {} style", "a picture of a tree"),
    ("a room in the style of {}", "a photo of a room"),
];
const CONTENT: Templates = &[
    ("{}", "a photo of everyday life"),
    ("an image of {}", "an image of everyday life"),
    ("a photo of {}", "a photo of people in a park"),
    ("a photo that shows {}", "a photo that shows a quiet street"),
    ("a picture with {}", "a picture with people wearing clothes"),
    ("a painting of {}", "a painting of a peaceful landscape"),
    ("a drawing of {}", "a drawing of a family at a table"),
    ("a scene of {}", "a scene of a village"),
    ("a film still of {}", "a film still of a conversation"),
    ("{}, photograph", "a garden, photograph"),
    ("{}, illustration", "a garden, illustration"),
    ("people and {}", "people and their friends"),
];
const IDENTITY: Templates = &[
    ("{}", "a person"),
    ("a photo of {}", "a photo of a person"),
    ("a portrait of {}", "a portrait of a person"),
    ("a close-up of {}", "a close-up of a person"),
    ("{} smiling", "a person smiling"),
    ("{} in a suit", "a person in a suit"),
    ("{} on a stage", "a person on a stage"),
    ("{} walking on a street", "a person walking on a street"),
    ("a drawing of {}", "a drawing of a person"),
    ("a painting of {}", "a painting of a person"),
    ("{} at a dinner table", "a person at a dinner table"),
    ("a film still of {}", "a film still of a person"),
];

/// What is kept whatever is erased.
#[rustfmt::skip]
const SUBJECTS: &[&str] = &[
    "a cat", "a dog", "a horse", "a bird", "a fish", "an elephant", "a house", "a bridge", "a castle", "a city", "a street",
    "a mountain", "a lake", "a forest", "a beach", "a garden", "a flower", "a tree", "a car", "a bicycle", "a boat", "a train",
    "a chair", "a table", "a cup of coffee", "a bowl of fruit", "a book", "a clock", "a guitar", "a man in a coat",
    "a woman in a dress", "a family in a park", "a crowd on a square", "a chef in a kitchen", "a circle", "a square",
];
const FRAMES: &[&str] =
    &["{}", "a photo of {}", "a picture of {}", "a painting of {}", "a drawing of {}", "{} at night"];

/// What else is kept where a person is erased: other people, of every age, look and trade.
#[rustfmt::skip]
const PEOPLE: &[&str] = &[
    "a woman", "a man", "a young woman with red hair", "a young man with curly hair", "an old man with a white beard",
    "an old woman with glasses", "a bald man in a sweater", "a woman with short black hair", "a man with a moustache",
    "a woman with a headscarf", "an African woman", "an African man", "an Asian woman", "an Asian man", "an Indian woman",
    "a Latin American man", "a doctor in a white coat", "a firefighter", "a police officer", "a musician on a stage",
    "an athlete in a stadium", "a politician at a lectern", "an actor in a theatre", "an actress on a red carpet",
    "a news presenter", "a businessman in a suit", "a scientist in a laboratory", "a farmer in a field", "a bride and a groom",
    "two friends on a bench",
];
const PORTRAITS: &[&str] =
    &["a photo of {}", "a portrait of {}", "a close-up of {}", "a drawing of {}", "a film still of {}"];
/// What else is kept where a style is erased: other styles.
#[rustfmt::skip]
const ARTISTS: &[&str] = &[
    "Claude Monet", "Vincent van Gogh", "Pablo Picasso", "Rembrandt", "Edvard Munch", "Gustav Klimt", "Katsushika Hokusai",
    "Paul Cezanne", "Andy Warhol", "Caravaggio", "Johannes Vermeer", "William Turner", "Edgar Degas", "Paul Gauguin",
    "Wassily Kandinsky", "Edward Hopper",
];
const ARTWORKS: &[&str] =
    &["a painting in the style of {}", "a landscape by {}", "a portrait by {}", "a house in the style of {}"];
/// What else is kept where content is erased: everyday life.
#[rustfmt::skip]
const EVERYDAY: &[&str] = &[
    "a person", "a woman in a business suit", "a man in jeans and a T-shirt", "a swimmer in a pool", "a nurse in scrubs",
    "a dancer on a stage", "a couple in winter jackets", "a family at dinner", "a portrait of an old man",
    "a smiling woman", "two people talking", "a football team", "people in a cafe", "a marble statue", "a runner in a park",
];

/// Every fourth prompt is kept for verification.
fn held_out(i: usize) -> bool {
    i % 4 == 3
}

/// The concept `text`, with empty `detect.labels`.
pub(super) fn concept(text: &str, kind: Kind) -> Concept {
    let templates = match kind {
        Kind::Object => OBJECT,
        Kind::Style => STYLE,
        Kind::Content => CONTENT,
        Kind::Identity => IDENTITY,
    };
    let (mut forget, mut anchors, mut verify_forget) = (Vec::new(), Vec::new(), Vec::new());
    for (i, (with, without)) in templates.iter().enumerate() {
        if held_out(i) {
            verify_forget.push(with.replace("{}", text));
        } else {
            forget.push(with.replace("{}", text));
            anchors.push((*without).to_string());
        }
    }
    let (mut retain, mut verify_retain) = (vec![String::new()], Vec::new());
    let (near, frames) = match kind {
        Kind::Object => (&[][..], FRAMES),
        Kind::Style => (ARTISTS, ARTWORKS),
        Kind::Content => (EVERYDAY, FRAMES),
        Kind::Identity => (PEOPLE, PORTRAITS),
    };
    let near = near.iter().map(|subject| (subject, frames));
    let pairs = near.chain(SUBJECTS.iter().map(|subject| (subject, FRAMES)));
    let pairs = pairs.flat_map(|(subject, frames)| frames.iter().map(move |frame| frame.replace("{}", subject)));
    // what names the concept is not to be kept; a retain prompt must not stand on both sides either
    let needle = format!(" {} ", normal(text));
    for (i, prompt) in pairs.filter(|prompt| !format!(" {} ", normal(prompt)).contains(&needle)).enumerate() {
        match held_out(i) {
            false => retain.push(prompt),
            true if anchors.contains(&prompt) => {}
            true => verify_retain.push(RetainPrompt { prompt, labels: Vec::new() }),
        }
    }
    Concept {
        name: text.to_string(),
        kind,
        model: None,
        forget,
        anchors,
        retain,
        verify: Verify { forget: verify_forget, synonyms: Vec::new(), retain: verify_retain, preserve: Vec::new() },
        detect: Detect { labels: Vec::new() },
        parts: Vec::new(),
        preserve: Vec::new(),
    }
}
