// How tensors of gradients are cut into tasks: by their shapes alone, with sizes that each backend chooses.
#pragma once
#include <climits>
#include <stdexcept>

#include "interface.h"

namespace decoct {

struct GradientCuts {
  int64_t elements;     // of a task on elements or on a piece of a row
  int64_t columns;      // of a task on rows of stride 1
  int64_t longest_row;  // that one task takes whole
  int64_t (*rows)(int64_t length);
};

inline GradientLayout cut_gradients(const GradientCuts& cuts, GradientMetric metric, EpsilonForm form,
                                    double epsilon, DType dtype, int64_t classes,
                                    const std::vector<GradientShape>& shapes) {
  GradientLayout layout;
  layout.metric = metric;
  layout.form = form;
  layout.epsilon = epsilon;
  layout.dtype = dtype;
  layout.classes = classes;
  if (classes < 0 || dtype > DType::bfloat16)
    throw std::invalid_argument("gradients: expected a number of classes and floating-point tensors");
  const bool by_rows = metric == GradientMetric::row_cosine || metric == GradientMetric::cosine_l2;
  for (const GradientShape& shape : shapes) {
    if (shape.outer < 1 || shape.rows < 1 || shape.inner < 1 || shape.outer > INT32_MAX ||
        shape.rows > INT32_MAX || shape.inner > INT64_MAX / 64 / shape.outer / shape.rows)
      throw std::invalid_argument("gradients: expected shapes of at least one element");
    GradientPart part{shape, layout.elements, layout.tasks, 0, 0, GradientCut::elements};
    const int64_t elements = shape.outer * shape.rows * shape.inner, length = shape.outer * shape.inner;
    const auto cut = [&part](GradientCut kind, int64_t total, int64_t size) {
      part.cut = kind;
      part.size = size;
      part.tasks = (total + size - 1) / size;
    };
    if (metric == GradientMetric::cosine) {
      part.shape = {1, 1, elements};
      cut(GradientCut::pieces, elements, cuts.elements);
    } else if (!by_rows) {
      cut(GradientCut::elements, elements, cuts.elements);
    } else if (shape.inner == 1 && shape.rows > 1) {
      cut(GradientCut::columns, shape.rows, cuts.columns);
    } else if (shape.outer == 1 && length > cuts.longest_row) {
      cut(GradientCut::pieces, length, cuts.elements);
      part.tasks *= shape.rows;
    } else {
      cut(GradientCut::rows, shape.rows, cuts.rows(length));
    }
    layout.pieces = layout.pieces || part.cut == GradientCut::pieces;
    layout.elements += elements;
    layout.tasks += part.tasks;
    layout.parts.push_back(part);
  }
  if (layout.classes > 0 && layout.tasks > INT32_MAX / layout.classes)
    throw std::invalid_argument("gradients: too many elements");
  return layout;
}

}  // namespace decoct
