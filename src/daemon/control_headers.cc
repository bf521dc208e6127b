#include "daemon/control_headers.h"

#include "tier/source.h"

namespace trims {

Result<ModelHeaders> ReadHeaders(const std::string& name, const std::string& path) {
  ASSIGN_OR_RETURN(const Source source, Source::OpenPath(path, CanonicalDirectoryName(name)));
  ModelHeaders headers;
  for (const SourceFile& file : source.files()) {
    ASSIGN_OR_RETURN(const format::FileSource bytes,
                     format::FileSource::Open(file.fd.get(), file.path));
    ASSIGN_OR_RETURN(format::FileIndex index, format::ParseModelFile(bytes));
    headers.metadata.insert(index.metadata.begin(), index.metadata.end());
    for (format::TensorEntry& tensor : index.tensors) {
      headers.weight_bytes += tensor.size_bytes;
      std::string key = tensor.name;
      headers.tensors.emplace(std::move(key), std::move(tensor));
    }
  }
  return headers;
}

}  // namespace trims
