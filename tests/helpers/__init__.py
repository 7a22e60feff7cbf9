"""What several test files need: tiny trained runs, the program's commands, small tokenizers and labelled texts."""
