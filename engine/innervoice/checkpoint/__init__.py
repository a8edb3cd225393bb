"""Files of a checkpoint as configurations and tensors.

audio_encoder.py       config of the encoders that turn recordings into embedding rows; names and shapes of tensors
codec_readers.py       config.json of Mimi, EnCodec, DAC, SNAC
codecs.py              the configurations of these codecs: sizes, rates, codebooks
decoder_tensors.py     names, shapes and bytes of the tensors of flow.pt and hift.pt
files.py               reads JSON; unknown keys are logged in foreign files and refused in ours
gguf.py                a GGUF file's metadata as the text files of a checkpoint
gguf_file.py           a GGUF file: metadata in one pass, and the bytes of tensors
heads.py               regression heads of a model that rates replies
locate.py              where the three parts of a model are: directories, a GGUF file, or hub ids
model_config.py        ModelConfig (shape, bytes) and generation_config.json
pickle_file.py         .pt files that hold tensors and nothing else
quantization.py        which format weights are kept in, and how config.json says so
rope.py                rotary positions as config.json describes them
safetensors.py         tensors by name: one file, shards, or random ones
safetensors_writer.py  a safetensors file, written tensor by tensor
speech_decoder.py      config.yaml as FlowConfig and HiftConfig
speech_tokenizer.py    the speech tokenizer's two config files; names and shapes of its tensors
tied_head.py           an output layer that is the embedding, and is in the files as well
yaml_reader.py         YAML whose tags become records: nothing is constructed or called
"""
