#![no_main]
dynalora_fuzz::target!(WordTable);
