// Which sources the library was built from: the hash of csrc (cmake/csrc_hash.py). sewsnn/ops/load.py reads it, so that
// results measured with a library built elsewhere carry its name and not that of the sources beside it.
extern "C" {
extern __attribute__((visibility("default"))) const char sewsnn_csrc[];
const char sewsnn_csrc[] = SEWSNN_CSRC_HASH;
}
