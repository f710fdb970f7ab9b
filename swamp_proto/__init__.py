"""The language both sides speak: messages, codec, limits, errors, session rules. Sans-IO."""
