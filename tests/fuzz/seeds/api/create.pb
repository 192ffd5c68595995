
ahybrid*trueä
kv