//! Models with a chat template.

use crate::{Scene, fixture};

/// A template in the manner of ChatML, of words that every tokenizer has.
pub const TEMPLATE: &str = "{% for m in messages %}{{ m.role + ': ' + m.content + ' . ' }}{% endfor %}\
                            {% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";

/// A copy of a fixture with a chat template, in the scene's folder `chat`; as a `--set` of a recipe's model.
pub fn chatty(scene: &Scene, model: &str, template: &str) -> String {
    let folder = scene.path("chat");
    std::fs::create_dir_all(&folder).expect("a folder");
    for entry in std::fs::read_dir(fixture(model)).expect("a fixture") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            let name = path.file_name().expect("a name");
            std::fs::copy(&path, folder.join(name)).expect("it copies");
        }
    }
    scene.write("chat/chat_template.jinja", template);
    format!("model.name={}", folder.display())
}
