"""Images, DICOM, tokenizer and prompts; ordered splits to two static streams; rectified flow."""
