"""What tests share: corpora, servers, jobs, references. Holds no test."""
