// Lists of types, and a value of one of these types that is chosen at run time.
#pragma once

#include <type_traits>

#include "core/macros.h"

SEWSNN_BEGIN

template <class T>
struct Tag {
  using type = T;
};

// Numbers as types, for arguments of generic functions.
template <bool B>
struct Bool {
  static constexpr bool value = B;
};
template <int I>
using Int = std::integral_constant<int, I>;

template <class... T>
struct List {
  static constexpr int size = sizeof...(T);
};

// The place of T in the list; its size if T is not in it.
template <class T, class... U>
constexpr int place_of(List<U...>) {
  int place = 0;
  const bool found = (... || (std::is_same_v<T, U> || (++place, false)));
  return found ? place : int(sizeof...(U));
}

// Calls f(Tag<T>) for the type at this place; the last type if there is none.
template <class T, class... Rest, class F>
auto with_type(List<T, Rest...>, int place, F&& f) {
  if constexpr (sizeof...(Rest) == 0) return f(Tag<T>());
  else return place == 0 ? f(Tag<T>()) : with_type(List<Rest...>(), place - 1, f);
}

// A member of each type, in one memory.
template <class... T>
union Members;
template <class T>
union Members<T> {
  T first;
};
template <class T, class... Rest>
union Members<T, Rest...> {
  T first;
  Members<Rest...> rest;
};

template <int I, class... T>
SEWSNN_HD const auto& member(const Members<T...>& members) {
  if constexpr (I == 0) return members.first;
  else return member<I - 1>(members.rest);
}
template <int I, class... T>
auto& member(Members<T...>& members) {
  if constexpr (I == 0) return members.first;
  else return member<I - 1>(members.rest);
}

SEWSNN_END
